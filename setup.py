"""Finds the packages; everything else about the distribution is in setup.cfg."""

from setuptools import find_packages, setup

APPLICATIONS = "keras_dsnet.applications"

setup(
    packages=[
        *find_packages(include=["keras_dsnet", "keras_dsnet.*"]),
        APPLICATIONS,
        *(f"{APPLICATIONS}.{name}" for name in find_packages("applications")),
    ]
)
