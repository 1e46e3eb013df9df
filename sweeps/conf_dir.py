"""Where the Hydra configs are: <repo>/conf in a checkout or an editable install, sweeps/conf inside a wheel."""

from pathlib import Path

_here = Path(__file__).resolve().parent
CONF_DIR = next(p for p in (_here / "conf", _here.parent / "conf") if (p / "config.yaml").is_file())
