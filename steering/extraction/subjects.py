"""Finds texts about one subject by the words that they share, for lists whose caller names no topics."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from steering.pairs import PairSet, Text

MOST_TEXTS = 2000
"""Texts that are compared, each with each. With all of them this takes 0.5 s, in which other threads wait for at most 71 ms (60 words a
text, two cores of an AMD EPYC), and two matrices of 32 MB."""
DISTANCE = 0.8
"""Mean cosine distance of word weights (tf-idf) up to which groups are joined. On the starter concepts as lists, both texts of a pair
are in one group for all pairs of five concepts, 97 % of refusal and 59 % of formality, whose sides share few words; no group has more than
8 texts."""
COMMON = 0.3
"""Share of the texts above which a word says nothing about the subject."""
FEW = 10
"""Up to so many texts every word counts."""


def with_subjects(pairs: PairSet) -> PairSet:
    """Returns lists with topics of texts that share rare words. Pairs, topics and too many texts stay as they are."""
    texts = (*pairs.positive, *pairs.negative)
    if pairs.paired or pairs.topics or len(texts) > MOST_TEXTS:
        return pairs
    found = [f"subject {number}" for number in subjects_of(texts)]
    count = len(pairs.positive)
    return replace(pairs, topics=tuple(found[:count]), negative_topics=tuple(found[count:]))


def subjects_of(texts: Sequence[Text]) -> list[int]:
    """Returns the group of each text; groups are joined while their texts are near on average, so no chains arise."""
    # scikit-learn takes a second to import
    from sklearn.cluster import AgglomerativeClustering  # noqa: PLC0415
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415

    words = [text if isinstance(text, str) else " ".join(message.content for message in text) for text in texts]
    words = [text.lower() for text in words]
    weights = TfidfVectorizer(analyzer=re.compile(r"\w+").findall, max_df=COMMON if len(texts) > FEW else 1.0)
    try:
        rows = weights.fit_transform(words)
    except ValueError:  # no words, or only common ones
        return list(range(len(texts)))
    distances = np.clip(1.0 - (rows @ rows.T).toarray(), 0.0, None)
    joined = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=DISTANCE)
    return [int(number) for number in joined.fit_predict(distances)]
