"""What every forecast has to say about itself."""

RESEARCH_USE = "Research use only; not a medical device."
PREDICTED = "Predicted, not observed."
POSITIVITY = (
    "Arms other than the one received are counterfactual. Where arms come from different trials, "
    "arm and scanner are confounded: the model may have seen no patient like this one on that arm, "
    "and nothing in the data can show that its answer is right."
)
