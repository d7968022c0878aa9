import runpy
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

COMMIT = runpy.run_path("sde_diffusion/commit.py")


class BuildWithCommit(build_py):
    """Notes the commit in what is installed, which lies in no checkout that could tell it."""

    def run(self):
        super().run()
        commit = COMMIT["commit_of"](Path(__file__).parent)
        if commit and not self.editable_mode:
            (Path(self.build_lib) / "sde_diffusion" / COMMIT["NOTE"]).write_text(commit, encoding="utf-8")


setup(
    name="sde-diffusion",
    version="0.1.0",
    description="Score-based diffusion models as stochastic differential equations, with every sampler proved",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["sde_diffusion", "sde_diffusion.*", "samplers"]),
    package_data={
        "sde_diffusion": [
            "py.typed",
            "evaluation/*.jinja",
            "evaluation/weights/*.safetensors",
            "training/runs/*/*",
            "training/runs/*/benchmark/*",
            "training/runs/*/checkpoints/*/*",
        ],
        "samplers": ["py.typed"],
    },
    install_requires=[
        "absl-py>=2.1",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "ml-collections>=1.0",
        "numpy>=1.26",
        "pillow>=10",
        "plotly>=6",
        "pyyaml>=6",
        "safetensors>=0.4.3",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tensorboard>=2.16",
        "torch>=2.6",
        "torch-fidelity>=0.3",
        "torchsde>=0.2.6",
        "torchvision>=0.19",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "diffusers>=0.30",
            "hypothesis>=6.100",
            "mypy>=1.11",
            "playwright>=1.40",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "types-tqdm",
        ]
    },
    cmdclass={"build_py": BuildWithCommit},
    entry_points={"console_scripts": ["sde-diffusion = sde_diffusion.__main__:start"]},
)
