"""Scoring models on COCO captions: tokens and BLEU as coco-caption has them, embeddings, the four variants."""
