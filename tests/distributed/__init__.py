"""The five promises in an Airflow of many processes, on the services production uses, while parts of it are killed."""
