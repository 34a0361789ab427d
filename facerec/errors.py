"""Errors that the user can fix. Jobs print these as one line and exit 2; anything else is a bug.

FacerecError
├── ConfigError      a flag, a YAML key, or two of them that do not fit together
├── SourceError      photographs that are not there, or not usable
├── DatasetError     a faces/ or embeddings/ folder that cannot be trusted
├── StorageError     S3 that refuses or does not answer, a disk that is full or not ours to write
├── ProcessError     a process of the job that was killed or cannot be started: memory is short, or the machine is full
├── MismatchError    two artifacts that do not belong together (preprocessing, model, run)
└── BusyError        another run holds the folder
"""

from __future__ import annotations


class FacerecError(Exception):
    """One clear line: what was found, what is needed, which flag to change."""


class ConfigError(FacerecError):
    """A flag or YAML key is wrong, or two of them do not fit together."""


class SourceError(FacerecError):
    """The photographs are missing, empty, or too few."""


class DatasetError(FacerecError):
    """A published folder is incomplete, damaged, or was never published."""


class StorageError(FacerecError):
    """S3 refuses: credentials, bucket, endpoint, permission; or it did not answer after all attempts. Or a disk is full."""

    code = ""
    """The code by which S3 refused, in lower case and without underscores: "accessdenied"; empty elsewhere."""


class ProcessError(FacerecError):
    """A process that the job started was killed, or cannot be started. Another attempt may succeed."""


class MismatchError(FacerecError):
    """Two artifacts do not belong together."""


class BusyError(FacerecError):
    """Another run is writing into the same folder."""
