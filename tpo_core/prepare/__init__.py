"""The preparation room: a record on disk -> one sample -> a batch, all in data workers."""

from tpo_core.prepare.chat import ChatReader, Tokenised
from tpo_core.prepare.collate import Collator
from tpo_core.prepare.sample import Prepared, PreparedQuery, SamplePreparer

__all__ = ["ChatReader", "Collator", "Prepared", "PreparedQuery", "SamplePreparer", "Tokenised"]
