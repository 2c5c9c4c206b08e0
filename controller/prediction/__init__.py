"""What will be: arrivals, service times, the latency of a candidate, calibration. Pure."""
