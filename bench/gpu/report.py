"""Result as a table."""

from __future__ import annotations

from typing import Any

from bench.harness import caption

#: Parts in order: measurements first, then the tests and the sanitizers, which take longest.
PARTS = (
    "ceilings",
    "kernels",
    "convolutions",
    "sweep",
    "exact",
    "triplet",
    "identify",
    "training",
    "tests",
    "sanitizer",
)


def table(result: dict[str, Any]) -> str:
    """Return the whole result as text."""
    found = result["environment"]
    lines = [caption(found)]
    if smi := found.get("nvidia_smi"):
        lines.append("  " + ", ".join(f"{key} {value}" for key, value in smi.items()))
    for part in PARTS:
        if part in result.get("errors", {}):
            lines.append(f"{part}: FAILED: {result['errors'][part].strip().splitlines()[-1]}")
    if tests := result.get("tests"):
        verdict, what = "ok" if tests["ok"] else "FAILED", tests.get("failed") or tests.get("error") or ""
        lines.append(f"tests: {verdict}, {tests.get('ran', 0)} ran, {tests.get('skipped', 0)} skipped {what}")
    if sanitizer := result.get("sanitizer"):
        for tool in ("memcheck", "racecheck"):
            if tool in sanitizer:
                said = sanitizer[tool]
                word = {True: "ok", False: "FAILED", None: "not finished"}[said["ok"]]
                what = said.get("summary") or said.get("error")
                lines.append(f"{tool}: {word}, {said.get('passed', 0)} tests {what}")
        if "skipped" in sanitizer:
            lines.append(f"sanitizer: skipped, {sanitizer['skipped']}")
    for name, value in result.get("ceilings", {}).items():
        unit = ("GB/s", 1e9) if "bytes" in name else ("TFLOP/s", 1e12)
        lines.append(f"ceiling {name.split('_')[0]:<6} {value / unit[1]:10.1f} {unit[0]}")
    if rows := result.get("kernels"):
        lines.append(f"{'op':<18} {'workload':<48} {'ms':>9} {'GB/s':>8} {'of floor':>8} {'host ms':>8} {'twin':>7}")
        for row in rows:
            twin = f"{row['twin_seconds'] / row['seconds']:6.1f}x" if "twin_seconds" in row else ""
            lines.append(
                f"{row['op']:<18} {row['workload']:<48} {row['seconds'] * 1e3:9.4f} "
                f"{row['bytes_per_s'] / 1e9:8.1f} {row['share_of_floor']:7.0%} "
                f"{row['host_seconds'] * 1e3:9.4f} {twin:>8}"
            )
    for row in result.get("convolutions", []):
        size, (inputs, outputs) = "x".join(map(str, row["size"])), row["channels"]
        lines.append(
            f"convolution {row['layer']:>3} {row['as']} {row['op']}, {row['windows']} windows {size}, "
            f"{inputs} to {outputs} channels: {row['seconds'] * 1e3:.3f} ms, "
            f"{row['share_of_peak']:.0%} of the matrix rate, {row['share_of_floor']:.0%} of its floor, "
            f"{row['apart_seconds'] / row['seconds']:.2f}x as fast as apart"
        )
    for row in result.get("sweep", []):
        plain, ours = row["pytorch_positions_per_s"], row["occfast_positions_per_s"]
        lines.append(
            f"dense sweep {row['network']} {row['dtype']} batch {row['batch']}: PyTorch {plain:,.0f}, "
            f"occfast {ours:,.0f} positions/s ({ours / plain:.2f}x)"
        )
    for row in result.get("exact", []):
        ratio = row["positions_per_s"] / row["dense_positions_per_s"]
        lines.append(
            f"exact sweep {row['network']} {row['occluder']} {row['as']}: {row['positions_per_s']:,.0f} "
            f"positions/s, {ratio:.2f}x the dense PyTorch sweep in it ({row['predicted']:.1f}x less work); "
            f"{row['replayed']} batches replayed; outputs {row['difference']:.1e} from dense float32, "
            f"{row['same_class']:.1%} of the classes the same"
        )
    for row in result.get("triplet", []):
        of_products = row["seconds"] / row["products_seconds"]
        lines.append(
            f"batch triplet loss {row['mining']}, B {row['batch']}, D {row['dim']}: "
            f"{row['seconds'] * 1e3:.2f} ms, {of_products:.1f}x its matrix products"
        )
    if row := result.get("identify"):
        lines.append(
            f"identify {row['probes']} probes, {row['faces']} faces: {row['seconds'] * 1e3:.1f} ms, "
            f"{row['of_matrix_rate']:.0%} of the fp32 matrix rate"
        )
    if found := result.get("training"):
        from bench.training import table as rows_of_training

        lines.append(rows_of_training(found))
    lines.append(f"{result['seconds']:.0f} s in all")
    return "\n".join(lines)
