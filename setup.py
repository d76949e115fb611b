"""Finds the packages; everything else about the distribution is in setup.cfg."""

from setuptools import find_namespace_packages, find_packages, setup

APPLICATIONS = "keras_dsnet.applications"
RECIPES = "keras_dsnet_recipes"
# The folders inside recipes/ are namespace packages: they have no __init__.py, since it would only
# hold a docstring. `find_namespace_packages` finds them for wheels and editable installs. Tests
# import them by their installed name, and `mypy recipes` needs --explicit-package-bases.

setup(
    packages=[
        *find_packages(include=["keras_dsnet", "keras_dsnet.*"]),
        APPLICATIONS,
        *(f"{APPLICATIONS}.{name}" for name in find_packages("applications")),
        RECIPES,
        *(f"{RECIPES}.{name}" for name in find_namespace_packages("recipes")),
    ]
)
