"""What the paper reports on its own, private data: a reference, never a comparison."""

from lesioncast.evaluation.metrics.names import AP, AUC, LOG_MSE

SOURCE = (
    "arXiv 2508.07006, tables 3 and 4; other data, so not comparable with the columns beside it"
)


ARMS = ("placebo", "laquinimod", "avonex", "interferon", "fumarate", "ocrelizumab")
PROPOSED = {
    AP: (0.783, 0.735, 0.623, 0.647, 0.436, 0.083),
    AUC: (0.826, 0.662, 0.536, 0.705, 0.607, 0.868),
    LOG_MSE: (1.538, 1.158, 1.093, 0.842, 0.531, 0.006),
}
BASELINE = {
    AP: (0.513, 0.577, 0.517, 0.361, 0.342, 0.019),
    AUC: (0.495, 0.505, 0.487, 0.507, 0.489, 0.509),
    LOG_MSE: (1.775, 1.620, 1.780, 0.991, 0.697, 0.010),
}

COHORT_SOURCE = "arXiv 2508.07006, table 1 (training set of another cohort)"
# By arm: patients, mean count at w048 and w096, percent active at w048 and w096.
COHORT = {
    "placebo": (267, 4.60, 3.33, 63.7, 58.1),
    "laquinimod": (184, 5.51, 4.49, 64.7, 57.1),
    "avonex": (214, 4.37, 4.37, 54.7, 51.9),
    "interferon": (418, 0.63, 1.59, 24.9, 33.7),
    "fumarate": (153, 0.60, 1.03, 19.6, 26.1),
    "ocrelizumab": (466, 0.07, 0.07, 3.20, 1.50),
}
REGIONAL_SOURCE = "arXiv 2508.07006, table 2; other data"
# By region: balanced accuracy, precision, recall, F1 of the paper's model and of its baseline.
REGIONAL = {
    "white_matter": ((0.684, 0.537, 0.629, 0.579), (0.497, 0.321, 0.322, 0.320)),
    "cortex": ((0.697, 0.367, 0.562, 0.444), (0.503, 0.154, 0.135, 0.143)),
}


def published(metric: str, group: str) -> tuple[float, float] | None:
    """(the paper's model, its baseline) on `metric` for an arm; None where it reports none."""
    if metric not in PROPOSED or group not in ARMS:
        return None
    place = ARMS.index(group)
    return PROPOSED[metric][place], BASELINE[metric][place]
