"""What a Triton says of the batches of a variant: counts and seconds by batch size."""

from dataclasses import dataclass, replace

from tritonclient import grpc as triton

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class Totals:
    """Running totals of one variant, or what was added to them."""

    requests: int
    total_s: float  # queue and compute of all requests
    batches: dict[int, tuple[int, float]]  # rows -> (count, seconds)

    @property
    def means_ms(self) -> dict[int, float]:
        """Return the mean milliseconds of a batch by its rows."""
        return {rows: 1e3 * seconds / count for rows, (count, seconds) in self.batches.items()}


def totals(address: str, model: str) -> Totals:
    """Ask a server (host:port, gRPC) for the totals of one model."""
    with triton.InferenceServerClient(address) as client:
        stats = client.get_inference_statistics(model).model_stats[0]
    done = stats.inference_stats
    parts = (done.queue, done.compute_input, done.compute_infer, done.compute_output)
    return Totals(
        done.success.count,
        sum(part.ns for part in parts) * _NS,
        {
            int(one.batch_size): (
                one.compute_infer.count,
                (one.compute_input.ns + one.compute_infer.ns + one.compute_output.ns) * _NS,
            )
            for one in stats.batch_stats
        },
    )


def difference(before: Totals, after: Totals) -> Totals:
    """Return what was added between two looks."""
    batches = {}
    for rows, (count, total_s) in after.batches.items():
        count_before, total_before_s = before.batches.get(rows, (0, 0.0))
        if count > count_before:
            batches[rows] = (count - count_before, total_s - total_before_s)
    return replace(
        after,
        requests=after.requests - before.requests,
        total_s=after.total_s - before.total_s,
        batches=batches,
    )
