"""How answers are scored: VQA accuracy, exact match (GQA), labels (SNLI-VE), CIDEr-D and BLEU (captions)."""

from jair.metrics.answers import LABELS, exact_match, label_match
from jair.metrics.captions import caption_scores, tokenize
from jair.metrics.vqa import vqa_accuracy

__all__ = ["LABELS", "caption_scores", "exact_match", "label_match", "tokenize", "vqa_accuracy"]
