"""Names of the metrics that the report and the paper's tables share."""

AVERAGE_PRECISION = "average_precision"
AUC = "auc"
AUC_WITHIN_ARM = "auc_within_arm"
LOG_MSE = "log_mse"
