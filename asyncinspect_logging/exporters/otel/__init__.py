"""The parts of the OpenTelemetry exporter, from a finished task to an answer of the collector's."""
