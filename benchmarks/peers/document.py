"""``docs/speed.md`` and its picture, made from the results."""

from __future__ import annotations

import re
import textwrap
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

from benchmarks import bars
from benchmarks.peers.report import NAMES, disagreeing, figures, markdown, peers_table, ratios, speed

HEAD = """# Speed

The cost of HEALSg compared with hand-written loops and with other frameworks. `python -m benchmarks.peers --docs`
measures W1 to W8 and writes this page; the numbers of every round are in `benchmarks/results/peers.json`.

* The **bare loop** is a hand-written PyTorch loop over a `DataLoader`. The **tight loop**, also by hand, takes its
  batches from tensors in memory.
* In W1 to W3 all sides train the same: the same samples in the same order, the same crops and flips, the same initial
  weights and the same optimizer. The sums of all parameters agree to three decimals at the end{agreed}. All sides
  compute metrics and evaluate after each epoch; HEALSg also saves checkpoints and logs, as it does by default.
* Each side runs in a process of its own, on one thread, and the rounds alternate between the sides. In W1 to W3, times
  are CPU times of the whole process from the second epoch to the start of the last one. Ratios are computed within a
  round; the tables show their median and, in parentheses or as a column, their range over the rounds.
* "x bare" means relative to the bare loop, so that 0.5 is twice as fast. A "bar" is an upper limit that a figure should
  not exceed.

On W2 and W3 the default `runner.channels_last=auto` chooses a memory format in which sums are rounded differently. The
times are those of the default; the parameters are compared after another run with `runner.channels_last=false`.
"""
WORKS = """
* W1: an MLP 64-128-10 on scikit-learn's digits, batch size 64, AdamW.
* W2: a small CNN (16 and 32 channels) on digits, batch size 128, AdamW.
* W3: an 8-layer residual network on images of CIFAR's shape with random crop and flip, batch size 128, SGD. Only two of
  the other frameworks are measured here, since the network takes nearly all of the time.
"""
WINS = """
## Where the differences come from

Three effects have to be distinguished.

{memory}
{loop}
* **The optimizer step.** HEALSg's SGD, Adam and AdamW call the same fused kernels as torch's own, bit for bit, with
  less Python around them: the code that torch adds for hooks and the profiler runs only if there are any. The
  hand-written loops use torch's optimizers. `benchmarks/results/where.txt` (`python -m benchmarks.where`) has the tight
  loop with both; with HEALSg's AdamW it is faster than HEALSg.

So where HEALSg is much faster than the bare loop on the MLP, the reason is the in-memory path; where it is close to the
tight loop or faster, the reason is the optimizer step. On W2 and W3 the memory format adds to this. The loop itself can
at best be as fast as a hand-written one. For data that do not fit into memory, and for a loader of your own, the
figures over a `DataLoader` apply. The other frameworks are measured over the same `DataLoader` as the bare loop; the
difference to the bare loop is the cost of their loops.
"""


def document(kept: dict[str, Any]) -> str:
    """The page."""
    works, odd = kept["workloads"], disagreeing(kept)
    told = "; ".join(f"{name}: not for {', '.join(peers)}" for name, peers in odd.items())
    parts = [HEAD.format(agreed=f" ({told})" if told else "")]
    if "W1" in works:
        parts += ["![W1: CPU time per step](speed.svg)\n", markdown(peers_table(kept)) + "\n", WORKS.lstrip()]
    failed = [f"* {NAMES.get(peer, peer)} failed: {why}" for peer, why in kept["failed"].items()]
    parts += ["\n".join(failed) + "\n"] if failed else []
    if "W1" in works:
        parts.append(WINS.lstrip().format(memory=memory(works), loop=loop(works)))
    rows = [["", "figure", "median", "range", "bar", ""], *(figure.row() for figure in figures(kept))]
    parts += ["## Figures and bars\n", markdown(rows) + "\n", notes(), *further(), NOT_RUN, conditions(works)]
    return "\n".join(parts)


def further() -> list[str]:
    """The workloads from W9 on, of ``benchmarks/results/bars.json``: a table of all figures, and their commands."""
    found = bars.kept()
    if not found:
        return []
    named = sorted({bar.workload for _, own in found.values() for bar in own}, key=lambda name: int(name[1:]))
    head = ["", "figure", "median", "range", "bar", "", "command"]
    rows = [
        [*bar.row(), command]
        for name in named
        for command, (_, own) in found.items()
        for bar in own
        if bar.workload == name
    ]
    commands = list(found)
    for row in rows:
        row[-1] = str(1 + commands.index(row[-1]))
    lines = [f"{place}. `{command}`: {found[command][0]}" for place, command in enumerate(commands, 1)]
    works = [f"* {name}: {bars.WORKLOADS[name]}" for name in named]
    parts = [
        FURTHER,
        "\n".join(works) + "\n",
        markdown([head, *rows]) + "\n",
        "The commands:\n",
        "\n".join(lines) + "\n",
    ]
    for file, title in CHOICES.items():
        if (path := bars.BARS.with_name(file)).exists():
            parts += [f"{title}\n\n```text\n{path.read_text()}```\n"]
    return parts


FURTHER = """## Images, evaluation, memory, precision, methods, start

The sides take turns, on one thread unless stated otherwise. In W9, W10 and W12 each side has a process of its own; in
W11 and W13 both sides run in one process, with the same memory allocator settings. Figures are medians of the ratios
within a round, with their range; "x by hand" means relative to a hand-written loop, and "ours" is HEALSg. Where a
figure says `95 %`, it is a mean with its 95 % interval, and a bar of 1.03 is met if the lower end of the interval is
below it. The machine was shared with other work, which widens the ranges.
"""
PIPELINES = ("monai", "nnunet")
OWN = {"bare", "tight", "healsg", "healsg_loader"}
"""The sides of W1 that the text compares."""

CHOICES = {
    "inference.txt": "Images per second of CPU time in evaluation and prediction (W10):",
    "fast.txt": "The choices of `runner=fast` for networks of the catalogue, measured once more (W12):",
    "fast_2_threads.txt": "The same with two threads, in wall time on a shared machine:",
    "precision.txt": "The effect of bf16 on the test accuracy on digits (W12):",
    "memory_paths.txt": "Memory of each loader worker for a million paths; bar: 10 MB more than for a thousand (W11):",
    "calls_by_method.txt": "Python and C calls per training step, by method (W13):",
}


NOTES = """\
* W4 compares with two scripts that take one training step. The first imports torch, NumPy and PyYAML and reads the
  digits without importing scikit-learn, as HEALSg does; the second calls scikit-learn's `load_digits`. HEALSg also
  imports Hydra and OmegaConf. The scripts use torch's AdamW, which imports torch's compiler; HEALSg's AdamW does not.
* W5 trains three epochs of digits, and three batches of 20,000 images in CIFAR's file format.
* W6 extrapolates the CPU time of 32 processes from four of them.
* W7 is `python benchmarks/saving.py`: the median over its saves in each round.
* W8 takes the smallest value over the rounds. An exponent of 1 means linear growth, 0 means no growth.

**MONAI's usual pipeline for volumes** (a Decathlon list of `.mha` files, resampling, intensity window, crop, patches of
96 voxels per axis around vessels, flips, a U-Net) as a HEALSg recipe, relative to the same pipeline written with MONAI
alone, where both keep the preprocessed volumes in memory: an update takes {update} of the CPU time, data loading per
patch {patch}, and sliding-window inference of a volume {volume}. The gain in an update comes from the memory format
(`runner.channels_last=auto`); with `false` an update takes as long as MONAI's. Measured by
`python -m benchmarks.segmentation.monai_pipeline` (`benchmarks/results/monai_pipeline.txt`).

**nnU-Net's own code** in the same process, on the same preprocessed volumes, each side reading its own file format: a
patch of 96 voxels per axis with its augmentation takes {augmented} of the CPU time, depending on which transforms are
drawn. nnU-Net cuts a larger patch, so that a rotation brings in voxels of the volume, where HEALSg fills with zeros.
Sliding-window inference of a volume with one network takes {windows}. nnU-Net's predictor sums the weighted windows in
float16: further than a quarter of a window from the volume's edges its logits differ from ours by at most 0.016; at the
edges, where the weights are smallest, by up to 0.5, and 602 of 753,300 voxels get another class. Measured by
`python -m benchmarks.segmentation.nnunet_pipeline` (`benchmarks/results/nnunet_pipeline.txt`).
"""
NOT_RUN = """## What was not measured

Nothing on this page was run on a GPU. In particular, these are not measured there: AMP, `channels_last`, compilation
and CUDA graphs, the training time of airbench94, the images per second of a loader that decodes or normalises on the
GPU, and what `runner=fast` chooses. The features for GPUs (`runner=fast`, `runner.cuda_graph`, samples and augmentation
on the device, copies that overlap with computation, no synchronisation between log lines) have tests in
`tests/test_gpu.py`, which run if there is a GPU, and `python benchmarks/first_gpu.py` measures them in a few minutes.
W15 counts operator calls instead of kernel launches.
"""


def notes() -> str:
    """``NOTES`` with the figures of the volumes' pipelines."""
    monai, nnunet = (bars.of_texts()[f"python -m benchmarks.segmentation.{name}_pipeline"][1] for name in PIPELINES)
    names = ("update", "patch", "volume", "augmented", "windows")
    rows = [bar.row() for bar in (*monai, *nnunet)]
    text = NOTES.format(**{name: f"{row[2]} ({row[3]})" for name, row in zip(names, rows, strict=True)})
    listed, *paragraphs = text.strip().split("\n\n")
    return "\n\n".join([listed, *map(wrapped, paragraphs)]) + "\n"


def memory(works: dict[str, Any]) -> str:
    """What the in-memory path is, and what it gives where W1 and W3 were measured."""
    rows = works["W1"]["rows"]
    text = (
        "* **The in-memory path.** Samples that fit into memory are held as tensors; a batch is one gather, and crop, "
        "flip and normalise act on whole batches, whereas a `DataLoader` fetches sample by sample. This needs no "
        "framework: the tight loop does the same."
    )
    if set(rows) >= OWN:
        pairs = (("tight", "bare"), ("healsg", "healsg_loader"))
        tight, own = (median(ratios(rows, *pair, "step")) for pair in pairs)
        text += (
            f" On W1 the tight loop takes {tight:.2f} of the bare loop's time, and HEALSg in memory {own:.2f} of its"
        )
        text += " time over a `DataLoader`."
        if path := works.get("W3", {}).get("data_path"):
            whole, single = median(path["healsg"]), median(path["bare"])
            text += f" On W3 the data path takes {whole:.1f} us per image, and {single:.1f} us sample by sample."
    return wrapped(text, "  ")


def loop(works: dict[str, Any]) -> str:
    """What the loop is, and what it costs where W1 was measured."""
    rows = works["W1"]["rows"]
    text = (
        "* **The loop.** All Python code beside forward, backward and optimizer step. Its cost shows where both sides "
        "read their samples in the same way."
    )
    if set(rows) >= OWN:
        pairs = (("healsg_loader", "bare"), ("healsg", "tight"))
        over, beside = (median(ratios(rows, *pair, "step")) for pair in pairs)
        text += (
            f" On W1 HEALSg takes {over:.2f} x the bare loop's time over a `DataLoader`, and {beside:.2f} x the tight"
        )
        text += " loop's in memory."
    return wrapped(text, "  ")


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of at most 120 characters; code between backticks stays on one line."""
    held = re.sub("`[^`]+`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.fill(held, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
    return lines.replace("\0", " ")


def conditions(works: dict[str, Any]) -> str:
    """Versions, machine and number of rounds of the measurements."""
    lines = []
    for name, work in works.items():
        machine = work["machine"]
        where = f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, no GPU"
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v != "not installed")
        load = machine["load at the start"][0]
        line = f"{work['rounds']} rounds at commit {work['commit']}, load {load} at the start; {where}; {versions}."
        lines.append((name, line))
    grouped: dict[str, list[str]] = {}
    for name, line in lines:
        grouped.setdefault(line, []).append(name)
    return "## Measured with\n\n" + "\n".join(f"* {', '.join(names)}: {line}" for line, names in grouped.items()) + "\n"


def picture(kept: dict[str, Any]) -> str:
    """A bar for each side: CPU time per step of W1, relative to the bare loop, as SVG."""
    rows = kept["workloads"]["W1"]["rows"]
    peers = sorted((peer for peer in rows), key=lambda peer: speed({"W1": rows}, peer))
    values = [median(ratios(rows, peer, "bare", "step")) for peer in peers]
    left, height, width, scale = 230, 24, 760, 440 / max(values)
    bottom = 50 + height * len(peers)
    shapes = ['<text x="10" y="24" font-size="15">W1: CPU time per training step, bare loop = 1</text>']
    for place, (peer, value) in enumerate(zip(peers, values, strict=True)):
        top, name = 42 + height * place, escape(NAMES[peer].replace("*", "").replace("`", ""))
        colour = "#c2410c" if peer.startswith("healsg") else "#64748b"
        shapes.append(f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{name}</text>')
        shapes.append(f'<rect x="{left}" y="{top}" width="{scale * value:.1f}" height="17" fill="{colour}"/>')
        shapes.append(f'<text x="{left + scale * value + 6:.1f}" y="{top + 13}">{value:.2f}</text>')
    one = left + scale
    shapes.append(f'<path d="M{one:.1f} 36V{bottom - 8}" stroke="#0f172a" stroke-dasharray="3 3"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" font-family="sans-serif"'
    head += ' font-size="13">'
    ground = f'<rect width="{width}" height="{bottom}" fill="#ffffff"/>'
    return "\n".join([head, ground, *shapes, "</svg>"]) + "\n"
