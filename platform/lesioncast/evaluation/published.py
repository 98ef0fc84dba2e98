"""What the paper reports on its own, private data: a reference, never a comparison."""

SOURCE = (
    "arXiv 2508.07006, tables 3 and 4; other data, so not comparable with the columns beside it"
)

AP = "ap"
AUC = "auc"
LOG_MSE = "log_mse"

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


def published(metric: str, group: str) -> tuple[float, float] | None:
    """(the paper's model, its baseline) on `metric` for an arm; None where it reports none."""
    if metric not in PROPOSED or group not in ARMS:
        return None
    place = ARMS.index(group)
    return PROPOSED[metric][place], BASELINE[metric][place]
