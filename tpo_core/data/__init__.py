"""Data: records, files of them, other formats, bad rows, and the mixture that training draws from."""

from __future__ import annotations

from tpo_core.data.index import RecordFile
from tpo_core.data.mixture import Draw, Mixture, Share, Source
from tpo_core.data.quarantine import Quarantine
from tpo_core.data.readers import Reader, convert
from tpo_core.data.records import Message, Part, Record

__all__ = ["Draw", "Message", "Mixture", "Part", "Quarantine", "Reader", "Record", "RecordFile", "Share", "Source", "convert"]
