"""The workflow of GitHub Actions and the pre-commit hooks against the rest of the project."""

import configparser
import pathlib
import re

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
WORKFLOW = (REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8")
HOOKS = (REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def test_the_workflow_tests_every_supported_python():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    classifiers = config["metadata"]["classifiers"]
    supported = re.findall(r"Python :: (3\.\d+)$", classifiers, re.MULTILINE)
    tested = re.search(r"python-version: \[(.*)\]", WORKFLOW)[1]
    assert re.findall(r"[\d.]+", tested) == supported


def test_the_workflow_runs_targets_that_exist():
    targets = re.findall(r"run: make (\S+)", WORKFLOW)
    assert {"lint", "test-slow", "docs"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_hooks_run_the_tools_of_make_lint_and_download_nothing():
    assert set(re.findall(r"repo: (\S+)", HOOKS)) == {"local"}
    assert set(re.findall(r"language: (\S+)", HOOKS)) == {"system"}
    for tool in re.findall(r"entry: \.venv/bin/(\w+)", HOOKS):
        assert f"$(VENV)/bin/{tool}" in MAKEFILE, tool


def test_help_lists_every_target():
    phony = re.search(r"^\.PHONY: help (.*)", MAKEFILE, re.MULTILINE)[1].split()
    listed = re.findall(r'@echo "make (\S+)', MAKEFILE)
    assert sorted(listed) == sorted(phony)


def test_the_package_says_that_it_has_types():
    assert (REPOSITORY / "keras_dsnet/py.typed").is_file()
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    assert "py.typed" in config["options.package_data"]["keras_dsnet"].split()
