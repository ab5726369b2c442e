"""LLaVA-CoT-100k (arXiv 2411.10440): from the published files to rows that training reads."""

from cobra.preprocessing.llava_cot.config import PrepareConfig
from cobra.preprocessing.llava_cot.preparing import prepare
from cobra.preprocessing.llava_cot.report import Report

__all__ = ["PrepareConfig", "Report", "prepare"]
