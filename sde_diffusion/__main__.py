"""``python -m sde_diffusion`` is the same as ``sde-diffusion``."""

import sys

from sde_diffusion.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
