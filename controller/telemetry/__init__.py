"""What is: GPU (NVML), host (psutil), Triton (statistics, metrics, OTLP traces)."""
