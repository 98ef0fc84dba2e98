"""Keys of the metrics in an evaluation."""

AP = "ap"


AUC = "auc"


LOG_MSE = "log_mse"
