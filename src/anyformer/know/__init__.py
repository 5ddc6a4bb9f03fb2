"""Answers out of documents: an index of a folder, search by words and by meaning, sentences with checked sources.

document.py     text, paragraphs, headings, lines
reading.py      files -> documents
markup.py       the same of HTML
encoder.py      the model that gives vectors, and its limit
chunking.py     documents -> passages that the encoder reads whole
store.py        the file of an index
indexing.py     `index`: only what has changed
vectors.py      where vectors are searched: in memory, FAISS, Qdrant
words.py        words, sentences, queries
searching.py    `Searcher`: BM25 and cosine, fused
calibrating.py  the scores above which something was found
opening.py      `opened`: an index by its folder
citing.py       sentences -> the passages that support them
relevance.py    how much likelier a passage makes a sentence
answering.py    `ask`
reader.py       passages for a model that finds and reads them itself (RAG)
tool.py         search as a function that a model can call
"""

from anyformer.know.answering import Answer, ask, written
from anyformer.know.encoder import Encoder
from anyformer.know.indexing import Indexed, index
from anyformer.know.opening import is_index, opened
from anyformer.know.searching import Found, Hit, Searcher

__all__ = ["Answer", "Encoder", "Found", "Hit", "Indexed", "Searcher", "ask", "index", "is_index", "opened", "written"]
