-- Prefect's database is POSTGRES_DB; MLflow keeps its own, since each numbers its tables' versions.
CREATE DATABASE mlflow;
