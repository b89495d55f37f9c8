"""Packaging; tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "cloudinit_conntrack/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="cloudinit-conntrack",
    version=VERSION,
    description="Make a Linux load balancer stateless, from one section of cloud-init user-data",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    # cloud-init imports its modules by a top-level name: the face stands beside the package.
    py_modules=["cc_conntrack"],
    packages=find_packages(include=["cloudinit_conntrack", "cloudinit_conntrack.*"]),
    package_data={"cloudinit_conntrack": ["conntrack.schema.json", "carried/*"]},
    install_requires=["PyYAML"],
    entry_points={"console_scripts": ["cloudinit-conntrack = cloudinit_conntrack.quick:main"]},
    classifiers=[
        "Environment :: Console",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Networking :: Firewalls",
    ],
)
