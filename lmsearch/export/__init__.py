"""Studies written for other programs: MLflow, TensorBoard, Weights & Biases, Parquet."""
