"""What a model of the world can do, capability by capability: a score, a ceiling and a floor each.

    python -m benchmarks.sora_tasks --ckpt MODEL --out outputs/sora_tasks/page.md

A capability is a file of ``capabilities/``: which clips of the world it takes (``cases``), what is judged of clips that
answer them (``judge``), and what a model that ignores what it is given would answer (``control``). The same judge reads
what the model made, the true clips through the model's VAE (the ceiling), and the control (the floor).

Two studies that train small models of their own stand beside it: ``python -m benchmarks.sora_tasks.scaling`` (quality
against training compute) and ``python -m benchmarks.sora_tasks.phyworld`` (which of two attributes is held on to).
"""
