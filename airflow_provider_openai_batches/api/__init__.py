"""The OpenAI Batch API over HTTP. Nothing here imports Airflow."""
