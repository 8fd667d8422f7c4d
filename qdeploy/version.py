"""The one place that holds the version: read by the build, by `--version` and by reports."""

VERSION = "0.1.0"
