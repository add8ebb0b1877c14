"""Packaging. Everything else about the project is in pyproject.toml.

The packages are named here because ``twisted.plugins`` must be installed without an
``__init__.py``, and because ``package_dir`` makes an editable install write a plain ``.pth``
file, which is what lets ``twistd`` find the drop-ins of a checkout.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["llama", "llama.*"]), "twisted.plugins"],
    package_dir={"": "."},
    package_data={"llama": ["py.typed", "web/static/*"]},
)
