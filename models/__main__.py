"""The zoo by hand: list it, fetch a model, score a model or a variant of it.

python -m models list
python -m models path magika
python -m models evaluate magika [--model variant.onnx] [--limit 10] [--threads 2]
"""

import argparse
import sys
from pathlib import Path

from models import metrics, zoo


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__, formatter_class=plain)
    parser.add_argument("action", choices=["list", "path", "evaluate"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument("--model", type=Path, help="the variant to score in the model's place")
    parser.add_argument("--limit", type=int, help="score fewer samples")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    failures = 0
    for name in options.names or zoo.MODELS:
        try:
            print(f"{name:22} {_answer(name, options)}", flush=True)
        except zoo.ZooError as error:
            failures += 1
            print(f"{name}: {error}", file=sys.stderr)
    return 2 if failures else 0


def _answer(name: str, options: argparse.Namespace) -> str:
    if options.action == "path":
        return str(zoo.path(name))
    if options.action == "evaluate":
        run = metrics.open_ort(options.model or zoo.path(name), options.threads)
        score = metrics.evaluate(name, run, options.limit)
        details = ", ".join(f"{key} {value:.4g}" for key, value in score.details.items())
        return f"{score.value:.4f}  {score.metric}; {score.samples} samples" + (f" ({details})" if details else "")
    if name not in zoo.MODELS:
        raise zoo.ZooError(f"the zoo has no '{name}'")
    model = zoo.MODELS[name]
    package = f"{model.source.client} {model.source.package}" if model.source else "in this repository"
    return f"{model.kind:9} {package}; {model.licence}"


if __name__ == "__main__":
    sys.exit(main())
