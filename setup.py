"""Package metadata of Ponder. Nothing of the project is imported or built here."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    # CPU wheels only up to this range are small; a newer release would pull gigabytes of CUDA wheels.
    "torch>=2.8,<2.14",
    "triton>=3.4; platform_system == 'Linux'",
    "numpy>=1.26",
    "pillow>=10",
    "scipy>=1.11",
    "scikit-image>=0.22",
    "trimesh>=4.0",
    "rich>=13",
    "tensorboard>=2.16",
]
CPU = ["spconv>=2.3.6"]
CUDA = [
    "spconv-cu120>=2.3.6; python_version < '3.12' and platform_system == 'Linux'",
    "spconv-triton>=1.0; python_version >= '3.12'",
]
TEST = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.9", "mypy>=1.11"]
BENCH = ["pytest-benchmark>=4", "matplotlib>=3.8"]
# Laser scans (.las, .laz).
DATA = ["laspy[lazrs]>=2.5"]
# The benchmarks are tested too, at tiny sizes, and so are all readers.
TEST += BENCH + DATA

setup(
    name="ponder",
    version="0.1.0",
    description="Pre-train 3D representations by differentiable neural rendering, with Triton kernels",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ponder", "ponder.*", "ponder_kernels", "ponder_kernels.*"]),
    package_data={"ponder": ["py.typed"], "ponder_kernels": ["py.typed", "launch_table.json"]},
    python_requires=">=3.10",
    install_requires=CORE,
    extras_require={"cpu": CPU, "cuda": CUDA, "test": TEST, "bench": BENCH, "data": DATA},
    entry_points={"console_scripts": ["ponder = ponder.cli:main"]},
)
