"""``docs/speed.md`` and its picture, made of what was measured."""

from __future__ import annotations

from statistics import median
from typing import Any
from xml.sax.saxutils import escape

from benchmarks import bars
from benchmarks.peers.report import NAMES, disagreeing, figures, markdown, peers_table, ratios, speed

HEAD = """# Speed

What HEALSg costs beside loops written by hand and beside other frameworks. `python -m benchmarks.peers --docs` measures
all of it and writes this page; the numbers of every round lie in `benchmarks/results/peers.json`.

Every peer trains the same: the same samples in the same order, the same crops and flips, the same weights to begin
with, the same optimizer, so that the sums of all parameters agree to three decimals at the end{agreed}. Metrics and an
evaluation each epoch are switched on for all; HEALSg also saves, logs and can be resumed, as a user has it. Each peer
runs in a process of its own on one thread, in interleaved rounds; time is CPU time of the whole process, from the
second epoch to the beginning of the last; ratios are taken within a round. Medians, with the range over the rounds.

On W2 and W3 `runner.channels_last=auto` chooses a memory format in which sums are rounded in another way: the times are
those of the default, and the parameters are compared after a further run with `runner.channels_last=false`.
"""
WORKS = """
* W1: an MLP 64-128-10 on scikit-learn's digits, batch 64, AdamW.
* W2: a small CNN (16 and 32 channels) on digits, batch 128, AdamW.
* W3: a residual network of 8 layers on images of CIFAR's shape with random crop and flip, batch 128, SGD. Of the
  frameworks only two are measured here: the network takes nearly all of the time.
"""
WINS = """
## Which wins come from what

Three things are at work, and they should not be taken for each other.

* **The in-memory path.** Samples that fit are held as tensors; a batch is one gather, and crop, flip and normalise act
  on whole batches. A `DataLoader` fetches sample by sample. Anybody can have this without a framework: it is what the
  tight loop does.{memory}
* **The loop.** What is called besides forward and backward. It shows where both read their samples in the same
  way.{loop}
* **The update.** HEALSg's SGD, Adam and AdamW call torch's fused kernels as torch's own do, bit for bit, with less
  Python around them: what torch puts around an update for hooks and the profiler is there only while there are any.
  The loops written by hand use torch's. `benchmarks/results/where.txt` (`python -m benchmarks.where`) has the tight
  loop with either, and with HEALSg's it is the faster one again.

So where HEALSg lies well under the bare loop, the in-memory path puts it there, and where it lies beside or under the
tight one, the update does; the loop itself can at best come near one that is written by hand. Data that do not fit in
memory, or a loader of one's own, get the figure over a `DataLoader`, not the one in memory.
The other frameworks are measured over the same `DataLoader` as the bare loop; what they cost above it is their loop.
"""


def document(kept: dict[str, Any]) -> str:
    """The page."""
    works, odd = kept["workloads"], disagreeing(kept)
    told = "; ".join(f"{name}: not for {', '.join(peers)}" for name, peers in odd.items())
    parts = [HEAD.format(agreed=f" ({told})" if told else "")]
    if "W1" in works:
        parts += ["![W1: CPU time a step](speed.svg)\n", markdown(peers_table(kept)) + "\n", WORKS.lstrip()]
    failed = [f"* {NAMES.get(peer, peer)} did not run: {why}" for peer, why in kept["failed"].items()]
    parts += ["\n".join(failed) + "\n"] if failed else []
    if "W1" in works:
        parts.append(WINS.lstrip().format(memory=memory(works), loop=loop(works)))
    rows = [["", "figure", "median", "range", "bar", ""], *(figure.row("passed") for figure in figures(kept))]
    parts += ["## Figures and bars\n", markdown(rows) + "\n", NOTES, *further(), NOT_RUN, conditions(works)]
    return "\n".join(parts)


def further() -> list[str]:
    """The workloads from W9 on, of ``benchmarks/results/bars.json``: one table of all figures, with their commands."""
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


FURTHER = """## Pictures, evaluation, memory, layouts, methods, start

Sides are measured in turns, on one thread where nothing else is said. In W9, W10 and W12 each has a process of its own;
in W11 and W13 both work in one process, on memory that is managed alike. Medians of the ratios within a round, with
their range; where a figure says `95 %`, it is a mean with its interval, and a bar of 1.03 is one that the interval must
reach below. The machine was shared with other work, which widens the ranges.
"""
CHOICES = {
    "inference.txt": "Pictures a second of CPU time in evaluation and prediction (W10):",
    "fast.txt": "What `runner=fast` chose for networks of the catalogue, and a second measurement of it (W12):",
    "fast_2_threads.txt": "The same with two threads, by the wall clock of a machine that other work shared:",
    "precision.txt": "What bf16 does to the test accuracy on the digits (W12):",
    "memory_paths.txt": "What a million paths cost each loader worker; the bar is 10 MB more than a thousand (W11):",
    "calls_by_method.txt": "Python and C calls of a step by method (W13):",
}


NOTES = """W4 compares with a script that imports the same (torch, Hydra, Rich; digits are read without scikit-learn's
import) and takes one step, and with one as it is usually written. Both use torch's AdamW, which imports torch's
compiler; HEALSg's does not. W5: three epochs of digits, and 20,000 images in CIFAR's files of which three batches are
trained. W6 reckons the 32 processes from four of them. W7 is `python benchmarks/saving.py`, of each round the
median over its saves. W8: of the rounds the least counts; an exponent of 1 is linear, 0 flat.

MONAI's usual pipeline of volumes (a Decathlon list of `.mha`, spacing, window, crop, patches of 96 around vessels,
flips, a U-Net), as one recipe of ours beside MONAI alone with everything held in memory: an update takes 0.68 of the
CPU time (0.66 to 0.72), the data's share of a patch 0.28 (0.24 to 0.32), a volume in sliding windows 1.06 (0.76 to
1.39). What an update gains is the memory format (`runner.channels_last=auto`); with `false` it takes as long as theirs.
`python -m benchmarks.segmentation.monai_pipeline` (`benchmarks/results/monai_pipeline.txt`).

nnU-Net's own code in one process with ours, the same prepared volumes in each one's files: a patch of 96 with its
augmentation takes 0.35 of the CPU time (0.22 to 0.56, which depends on what is drawn; nnU-Net cuts a larger patch, so
that what is turned in comes from the volume, ours fills it with zeros), a volume in sliding windows by one network 1.02
(0.98 to 1.07). Its predictor weighs and sums in float16: from a quarter of a window inside the edges on, its logits are
within 0.016 of ours; at the edges, where the weights are smallest, up to 0.5, and 602 of 753,300 voxels get another
class. `python -m benchmarks.segmentation.nnunet_pipeline` (`benchmarks/results/nnunet_pipeline.txt`).
"""
NOT_RUN = """## What was not run

Nothing on this page was run on a GPU: not AMP, `channels_last`, compiling and CUDA graphs there, not airbench94's
seconds, not the images a second of a loader that decodes or normalises there, nor what `runner=fast` chooses. What is
there for one (`runner=fast`, `runner.cuda_graph`, samples and augmentation on the device, copies beside the work, no
waiting between log lines) has tests in `tests/test_gpu.py`, which run where there is one, and
`python benchmarks/first_gpu.py` measures it in its first minutes. Launches are counted as calls of operators (W15).
"""


def memory(works: dict[str, Any]) -> str:
    rows = works["W1"]["rows"]
    if not {"bare", "tight", "healsg", "healsg_loader"} <= set(rows):
        return ""
    tight, own = (median(ratios(rows, *pair, "step")) for pair in (("tight", "bare"), ("healsg", "healsg_loader")))
    line = (
        f" On W1 it takes the hand-written loop to {tight:.2f} of the bare one, and HEALSg to {own:.2f} of what it is"
    )
    line += " over a `DataLoader`."
    if path := works.get("W3", {}).get("data_path"):
        line += (
            f" On W3 an image costs {median(path['healsg']):.0f} us, {median(path['bare']):.0f} us sample by sample."
        )
    return line


def loop(works: dict[str, Any]) -> str:
    rows = works["W1"]["rows"]
    if not {"bare", "tight", "healsg", "healsg_loader"} <= set(rows):
        return ""
    pairs = (("healsg_loader", "bare"), ("healsg", "tight"))
    over, beside = (median(ratios(rows, *pair, "step")) for pair in pairs)
    return f" On W1: {over:.2f} x the bare loop over a `DataLoader`, {beside:.2f} x the tight loop in memory."


def conditions(works: dict[str, Any]) -> str:
    """With what, where and how often it was measured."""
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
    """A bar a peer: CPU time a step of W1, with the bare loop as 1, as SVG."""
    rows = kept["workloads"]["W1"]["rows"]
    peers = sorted((peer for peer in rows), key=lambda peer: speed({"W1": rows}, peer))
    values = [median(ratios(rows, peer, "bare", "step")) for peer in peers]
    left, height, width, scale = 230, 24, 760, 440 / max(values)
    bottom = 50 + height * len(peers)
    shapes = ['<text x="10" y="24" font-size="15">W1: CPU time a training step, bare loop = 1</text>']
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
