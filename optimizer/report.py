"""Results for people: tables made from the same dictionaries that `--json` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

NONE = "-"
MOST = 30  # groups shown


def show(*parts: RenderableType) -> None:
    """Prints to stdout; plain text, not cut to a width, where that is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    for part in parts:
        console.print(part)


def summary(folder: Path, manifest: Mapping[str, Any]) -> RenderableType:
    """What an optimize run made: one line, then one row per variant, the shipped one marked."""
    output, source = manifest["output"], manifest["source"]
    size = _bytes(output["bytes"] + sum(f["bytes"] for f in output["data"]))
    head = Text.assemble(
        (str(folder / output["file"]), "bold"),
        f"  {manifest['target']}, {manifest['shipped']} shipped; {size}, ",
        f"{output['nodes']} nodes (was {source['nodes']})",
    )
    engine = [_engine(folder, manifest)] if "precision" in manifest else []
    if "auto" in manifest:
        return Group(head, *engine, _tried(manifest["auto"]))
    engine += [_interface(manifest["interface"])] if "interface" in manifest else []
    if len(manifest["candidates"]) == 2 and not manifest["measured"]["latency"]:
        return Group(head, *engine, _checked(manifest["checked"]))
    return Group(head, *engine, _variants(manifest))


def _interface(narrowed: Mapping[str, Any]) -> Text:
    """What was fixed of the inputs."""
    frozen = [f"{name} is always {value:g}" for name, value in narrowed["frozen"].items()]
    sizes = {n: "x".join("?" if dim is None else str(dim) for dim in dims) for n, dims in narrowed["shapes"].items()}
    return Text(f"  interface: {'; '.join([*frozen, *(f'{name} is {size}' for name, size in sizes.items())])}")


def _tried(auto: Mapping[str, Any]) -> Table:
    """What --target auto measured, the shipped one marked."""
    titles = ["", "latency", "speed", "at least", "at most", "SQNR", "same top-1", "metric", ""]
    rows = [_try(one) for one in auto["tried"]]
    shipped = next(place for place, row in enumerate(rows) if row[0] == auto["shipped"])
    for place, row in enumerate(rows):
        row[0] = f"{'>' if place == shipped else ' '} {row[0]}"
    return _columns(titles, rows, bold=shipped)


def _try(one: Mapping[str, Any]) -> list[str]:
    point, parity = one["point"], one["parity"]
    ratio = point and point["ratio"]
    agreement = parity and parity["agreement"]
    return [
        one["name"],
        f"{point['p50_ms']:.3g} ms" if point else NONE,
        *(f"{ratio[key]:.2f}x" if ratio else NONE for key in ("middle", "low", "high")),
        NONE if parity is None else "equal" if parity["exact"] else f"{parity['sqnr_db']:.1f} dB",
        NONE if agreement is None else f"{agreement:.1%}",
        NONE if one["metric"] is None else f"{one['metric']:.4g}",
        one["reason"] or ("" if ratio is None or ratio["verdict"] != "no difference" else ratio["verdict"]),
    ]


def _engine(folder: Path, manifest: Mapping[str, Any]) -> Text:
    """The engine, its precision by share of the work, and the heaviest operators that are not in int8."""
    engine, precision = manifest["engine"], manifest["precision"]
    lines = ["  no engine: " + (manifest["engine_missing"] or f"build it with '{manifest['compile']}'")]
    if engine is not None:
        sizes = "; ".join(f"{name} {_profile(shapes)}" for name, shapes in engine["profiles"].items())
        lines = [
            f"{folder / engine['file']}  {engine['library']} {engine['version']} for {', '.join(engine['gpus'])}; "
            f"{_bytes(engine['bytes'])}, built in {manifest['measured']['build']:.1f} s{'; ' + sizes if sizes else ''}"
        ]
    shares = ", ".join(f"{share:.1%} {name}" for name, share in precision["shares"].items() if share)
    work = f"  MACs: {shares or 'none'}" + (" (as built)" if engine else " (as the model says)")
    if precision["achieved"] is not None:
        work += f"; {precision['wanted']} is {precision['achieved']:.1%} of what can be"
    lines.append(work)
    if manifest["lint"]:
        lines.append(f"  lint: {len(manifest['lint'])} findings, 'optimize lint' explains them")
    return Text("\n".join(lines))


def _checked(checked: Mapping[str, Any]) -> Text:
    if not checked["outputs"]:
        return Text(f"  outputs not compared: {checked['reason']}")
    return Text(f"  outputs equal the original's on {checked['feeds']} inputs (largest error {checked['max_abs']:.2g})")


def _profile(shapes: Mapping[str, list[int]]) -> str:
    """As --shape takes it; one shape where all are the same."""
    return ":".join(dict.fromkeys("x".join(map(str, shape)) for shape in shapes.values()))


def _variants(manifest: Mapping[str, Any]) -> Table:
    rows = [_row(c, manifest) for c in manifest["candidates"]]
    titles = ["", "size", "nodes", "latency", "speed", "SQNR", "same top-1", "metric", ""]
    shipped = next(place for place, row in enumerate(rows) if row[0] == manifest["shipped"])
    for place, row in enumerate(rows):
        row[0] = f"{'>' if place == shipped else ' '} {row[0]}"
    return _columns(titles, rows, bold=shipped)


def _row(candidate: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    latency = manifest["measured"]["latency"].get(candidate["scheme"])
    outputs = candidate["fidelity"]["outputs"].values()
    metric = candidate["fidelity"]["metric"]
    return [
        candidate["scheme"],
        _bytes(candidate["bytes"]),
        NONE if candidate["nodes"] is None else str(candidate["nodes"]),
        f"{latency['median_ms']:.3g} ms" if latency else NONE,
        f"{latency['speedup']:.2f}x" if latency else NONE,
        _worst(outputs),
        _least(o["agreement"] for o in outputs if o.get("agreement") is not None),
        NONE if metric is None else f"{metric:.4g}",
        candidate["reason"] or "",
    ]


def _worst(outputs: Iterable[Mapping[str, Any]]) -> str:
    """The lowest SQNR of all outputs."""
    rows = list(outputs)
    if not rows or any("broken" in row for row in rows):
        return NONE
    values = [row["sqnr_db"] for row in rows if not row.get("exact")]
    if any(value is None for value in values):
        return "none"
    return f"{min(values):.1f} dB" if values else "equal"


def _least(shares: Iterable[float]) -> str:
    lowest = min(shares, default=None)
    return NONE if lowest is None else f"{lowest:.1%}"


def _bytes(size: int | None) -> str:
    if size is None:
        return NONE
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"


def _count(number: int) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)


def model(facts: Mapping[str, Any]) -> RenderableType:
    """What `optimize inspect` found."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opset"].items())
    weights = ", ".join(f"{dtype} {_bytes(size)}" for dtype, size in facts["weights"].items())
    shapes = ", ".join(f"{name} {sizes}" for name, sizes in facts["macs_at"].items())
    left = f"; {facts['macs_unknown']} operators of unknown shape left out" if facts["macs_unknown"] else ""
    rows = (
        ("file", f"{facts['file']}, {_bytes(facts['bytes'])}"),
        ("opset", f"{opsets}; IR {facts['ir_version']}{'; ' + facts['producer'] if facts['producer'] else ''}"),
        ("parameters", f"{_count(facts['parameters'])} ({weights or 'none'})"),
        ("MACs", f"{_count(facts['macs'])} at {shapes}{left}"),
        *(("input", f"{name}: {kind}") for name, kind in facts["inputs"].items()),
        *(("input", f"{name}: {kind}, has a default") for name, kind in facts["defaults"].items()),
        *(("output", f"{name}: {kind}") for name, kind in facts["outputs"].items()),
        ("nodes", f"{facts['nodes']} in {1 + facts['subgraphs']} graph{'s' if facts['subgraphs'] else ''}"),
    )
    about = Text("\n".join(f"{key:<12}{value}" for key, value in rows))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("operator")
    for title in ("count", "MACs", "share"):
        table.add_column(title, justify="right")
    for name, row in facts["operators"].items():
        share = f"{row['macs'] / facts['macs']:.1%}" if row["macs"] else ""
        table.add_row(name, str(row["count"]), _count(row["macs"]) if row["macs"] else "", share)
    return Group(about, table)


def pruning(found: Mapping[str, Any]) -> RenderableType:
    """What `optimize explain --pruning` found: the groups that can be pruned, the heaviest first, and what cannot."""
    groups, frozen = found["groups"], found["frozen"]
    units = sum(group["units"] for group in groups)
    parts: list[RenderableType] = [Text(f"{len(groups)} groups, {units} units can be pruned")]
    if groups:
        parts.append(listing(("group", "units", "MACs", "removal", "layers"), map(_group, _heaviest(groups))))
    if len(groups) > MOST:
        parts.append(Text(f"  and {len(groups) - MOST} more, which --json lists"))
    if frozen:
        rows = ((f["reason"], str(f["axes"]), _names(f["examples"], 3)) for f in frozen)
        parts.append(listing(("kept because", "axes", "such as"), rows))
    return Group(*parts)


def _heaviest(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(groups, key=lambda group: -(group["macs_share"] or 0.0))[:MOST]


def _group(group: Mapping[str, Any]) -> list[str]:
    units, share = group["units"], group["macs_share"]
    return [
        group["name"],
        f"{units} {group['unit']}{'' if units == 1 else 's'}",
        NONE if share is None else f"{share:.1%}",
        "exact" if group["exact"] else "approximate",
        _names(group["layers"], 4),
    ]


def _names(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def explanation(found: Mapping[str, Any]) -> RenderableType:
    """What `optimize explain` found: counts by rule, the nodes that rules made, those that went, near misses."""
    head = Text.assemble(
        (found["model"], "bold"),
        f"  {found['nodes_before']} nodes became {found['nodes_after']}, by {found['pipeline']}",
    )
    parts: list[RenderableType] = [head]
    if found["rules"]:
        rows = [[row["rule"] or "(the pass itself)", row["pass"], str(row["count"])] for row in found["rules"]]
        parts.append(listing(("rule", "pass", "rewrites"), rows))
    made = [node for node in found["nodes"] if not node["kept"]]
    if made:
        rows = [[n["node"], n["op"], _steps(found, n["rewrites"]), _nodes(n["from"], 4)] for n in made[:MOST]]
        parts.append(listing(("made", "operator", "by", "from"), rows))
        parts += _left_out(len(made) - MOST)
    if found["gone"]:
        parts.append(listing(("gone", "by", "nodes"), _gone(found)))
    if found["near_misses"]:
        groups = _grouped(found["near_misses"])
        rows = [[rule, str(len(own)), own[0]["text"], _nodes(own[0]["nodes"], 4)] for rule, own in groups[:MOST]]
        parts.append(listing(("nearly", "times", "but, for instance", "at"), rows))
        parts += _left_out(len(groups) - MOST)
    return Group(*parts)


def _gone(found: Mapping[str, Any]) -> list[list[str]]:
    """How many nodes of the original nothing stands for, by what took them, the commonest first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for node in found["gone"]:
        steps = "" if node["rewrite"] is None else _steps(found, [node["rewrite"]])
        groups.setdefault(steps, []).append(node)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [[str(len(own)), steps, _nodes(own, 4)] for steps, own in ordered]


def _grouped(misses: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Near misses by rule and reason, the commonest first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for miss in misses:
        groups.setdefault((miss["rule"], miss["reason"]), []).append(miss)
    return [(rule, own) for (rule, _), own in sorted(groups.items(), key=lambda item: -len(item[1]))]


def _steps(found: Mapping[str, Any], numbers: Iterable[int]) -> str:
    edits = [found["rewrites"][number] for number in numbers]
    edits = [edit for edit in edits if not edit["instead_of"]]  # what only made it read something else
    return ", ".join(dict.fromkeys(edit["rule"] or edit["pass"].partition("{")[0] for edit in edits))


def _nodes(nodes: Sequence[Mapping[str, str]], most: int) -> str:
    return _names([f"{node['node']} ({node['op']})" for node in nodes], most)


def _left_out(count: int) -> list[RenderableType]:
    return [Text(f"  and {count} more, which --json lists")] if count > 0 else []


def history(found: Mapping[str, Any]) -> Text:
    """What `optimize explain --node` found: what one node is made of or became, step by step, and near misses."""
    node, gone = found["node"], found["gone"]
    lines = []
    if node is not None:
        whence = "as it came" if node["kept"] else f"made of {_nodes(node['from'], MOST) or 'nothing of the original'}"
        lines.append(f"{node['node']} ({node['op']}) -> {', '.join(node['outputs'])}: {whence}")
    lines += [f"it went into {_nodes([one], 1)} -> {', '.join(one['outputs'])}" for one in found["became"]]
    if gone is not None:
        instead = f"its readers read '{gone['into']}'" if gone["into"] else "nobody read it"
        lines.append(f"{gone['node']} ({gone['op']}) is gone: {instead}")
    for edit in found["rewrites"]:
        name = f"{edit['rule']} ({edit['pass']})" if edit["rule"] else edit["pass"]
        lines.append(f"  {edit['number']:>4}  {name}: {_edit(edit)}")
    if found["near_misses"]:
        lines.append("nearly:")
    lines += [f"  {miss['rule']} at {_nodes(miss['nodes'], MOST)}: {miss['text']}" for miss in found["near_misses"]]
    return Text("\n".join(lines))


def _edit(edit: Mapping[str, Any]) -> str:
    took = _nodes(edit["took"], MOST) or "nothing"
    if edit["instead_of"]:
        return f"{took} reads '{edit['into']}' instead of '{edit['instead_of']}'"
    if edit["made"]:
        return f"{took} became {_nodes(edit['made'], MOST)}"
    return f"{took} gave way to '{edit['into']}'" if edit["into"] else f"{took} was not read"


def curve(folder: Path, facts: Mapping[str, Any]) -> RenderableType:
    """What `optimize prune-curve` measured: one row per model."""
    head = Text.assemble((str(folder / "curve.svg"), "bold"), f"  {facts['target']}; MACs left of the float model's")
    titles = ("ratio", "MACs", "parameters", "size", "latency", "speed", "SQNR", "same top-1", "metric", "")
    rows = [_tradeoff(row) for row in facts["rows"]]
    parts: list[RenderableType] = [head, _columns(titles, rows)]
    if facts["untimed"]:
        parts.append(Text(f"latency was not measured: {facts['untimed']}"))
    return Group(*parts)


def _tradeoff(row: Mapping[str, Any]) -> list[str]:
    latency, sqnr, agreement, metric = (row[key] for key in ("latency", "sqnr_db", "agreement", "metric"))
    return [
        f"{row['ratio']:g}" if row["ratio"] else row["model"],
        NONE if row["macs_left"] is None else f"{row['macs_left']:.1%}",
        NONE if row["parameters_left"] is None else f"{row['parameters_left']:.1%}",
        _bytes(row["bytes"]),
        f"{latency['median_ms']:.3g} ms" if latency else NONE,
        f"{latency['speedup']:.2f}x" if latency else NONE,
        "equal" if row["exact"] else NONE if sqnr is None else f"{sqnr:.1f} dB",
        NONE if agreement is None else f"{agreement:.1%}",
        NONE if metric is None else f"{metric:.4g}",
        row["reason"] or "",
    ]


def profile(facts: Mapping[str, Any], top: int) -> RenderableType:
    """Where the time goes: by operator, then the slowest nodes; what is above the bound is left to win."""
    best = facts["peaks"]
    bound = "" if facts["bound_ms"] is None else f"; the machine needs {facts['bound_ms']:.3g} ms at least"
    head = Text.assemble(
        (f"{facts['target']}, {facts['scheme']}", "bold"),
        f"  {facts['ms']:.3g} ms in {len(facts['nodes'])} kernels{bound}\n",
        f"  best of this machine: {best['float32_macs'] / 1e9:.0f} GMAC/s in float32, ",
        f"{best['int8_macs'] / 1e9:.0f} in int8, {best['memory_bytes'] / 1e9:.1f} GB/s",
    )
    titles = ("operator", "count", "ms", "share", "GMAC/s", "GB/s", "bound ms", "left to win")
    rows = [[r["op"], str(r["count"]), *_rates(r)] for r in facts["operators"]]
    slowest = [[r["node"], r["op"], *_rates(r)] for r in facts["nodes"][:top]]
    return Group(head, _columns(titles, rows), _columns(("node", "operator", *titles[2:]), slowest))


def _rates(row: Mapping[str, Any]) -> list[str]:
    seconds, bound = row["ms"] / 1000, row.get("bound_ms")
    return [
        f"{row['ms']:.3g}",
        f"{row['share']:.1%}",
        f"{row['macs'] / seconds / 1e9:.1f}" if row["macs"] and seconds else NONE,
        f"{row['bytes'] / seconds / 1e9:.1f}" if row["bytes"] and seconds else NONE,
        NONE if bound is None else f"{bound:.2g}",
        NONE if bound is None or not row["ms"] else f"{max(0.0, 1 - bound / row['ms']):.0%}",
    ]


def _columns(titles: Sequence[str], rows: Sequence[Sequence[str]], bold: int = -1) -> Table:
    """A table of numbers, one of its rows in bold; a column without any number is left out."""
    kept = [at for at in range(len(titles)) if any(row[at] not in (NONE, "") for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for at in kept:
        table.add_column(titles[at], justify="right" if titles[at] else "left", no_wrap=bool(titles[at]))
    for place, row in enumerate(rows):
        table.add_row(*(Text(row[at]) for at in kept), style="bold" if place == bold else None)
    return table


def listing(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A plain table."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


SHOWN = 8  # findings of one rule


def findings(found: Sequence[Mapping[str, str]], titles: Mapping[str, str]) -> Text:
    """What the linter found: rule by rule the places, what is wrong there, and what to do."""
    text = Text(f"{len(found)} finding{'' if len(found) == 1 else 's'}")
    for rule in dict.fromkeys(f["rule"] for f in found):
        own = [f for f in found if f["rule"] == rule]
        text.append(f"\n\n{rule}", "bold").append(f"  {own[0]['severity']}: {titles[rule]} ({len(own)})")
        text.append(f"\n  fix: {own[0]['fix']}")
        for finding in own[:SHOWN]:
            text.append(f"\n    {finding['op']} '{finding['node']}' -> '{finding['output']}': {finding['message']}")
        if len(own) > SHOWN:
            text.append(f"\n    and {len(own) - SHOWN} more, which --json lists")
    return text
