"""What a service is operated with, made from the metric catalogue: for Grafana, for Prometheus."""
