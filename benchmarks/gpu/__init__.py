"""What an accelerator makes of lightning_sora: correctness, speed and memory, in parts that stand each alone.

    python -m benchmarks.gpu --minutes 60 --out outputs/gpu                # an hour on a GPU
    python -m benchmarks.gpu --device cpu --reduced --out outputs/gpu      # every part at a tiny size, without one

Measuring needs torch 2.11, einops, jaxtyping and this checkout; a part that needs more says so and is left out.
Parts run in order of worth, each within its share of the minutes and in a process of its own, so that none can end
the others: what one raises is written down, and the next goes on. ``results.json`` and ``page.md`` are written after
every figure. Whoever has an accelerator commits the page as ``benchmarks/results/gpu_<device>_<date>.md``.
"""
