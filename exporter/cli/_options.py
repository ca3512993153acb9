"""Options that several verbs of `resnet-deploy` share."""

from __future__ import annotations

from exporter.cli._help import option_group

backend_group, output_group = map(option_group, ("Backend", "Output"))

trust_option = backend_group(
    "--trust-engine",
    "trust_engines",
    multiple=True,
    metavar="SHA256",
    help="Load this engine although another machine built it; an engine is code. Repeatable.",
)
provider_option = backend_group(
    "--provider",
    metavar="NAME",
    help="Device to run on: cpu, cuda, or ONNX Runtime's tensorrt.  [default: the backend's choice]",
)
json_option = output_group("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
quiet_option = output_group("--quiet", is_flag=True, help="Show no progress; errors alone go to stderr.")
