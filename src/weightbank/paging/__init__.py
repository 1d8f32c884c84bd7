"""Many networks in one small memory: places that cost little to share, training that makes sharing true, serving."""

from weightbank.paging.commit import Score
from weightbank.paging.convert import Converted, convert
from weightbank.paging.exclusive import vectors
from weightbank.paging.extents import place_extents
from weightbank.paging.pages import assign_pages, merge_loss, pair_cost, place_pages
from weightbank.paging.placement import Extent, Placement
from weightbank.paging.pool import Pool
from weightbank.paging.published import place_published
from weightbank.paging.report import Report
from weightbank.paging.spending import keep_private, private_options
from weightbank.paging.statistics import Shared
from weightbank.paging.tenant import TenantLaw
from weightbank.paging.through import Through, memory_layout, memory_of
from weightbank.paging.tune import Tuned, tune

__all__ = [
    "Converted",
    "Extent",
    "Placement",
    "Pool",
    "Report",
    "Score",
    "Shared",
    "TenantLaw",
    "Through",
    "Tuned",
    "assign_pages",
    "convert",
    "keep_private",
    "memory_layout",
    "memory_of",
    "merge_loss",
    "pair_cost",
    "place_extents",
    "place_pages",
    "place_published",
    "private_options",
    "tune",
    "vectors",
]
