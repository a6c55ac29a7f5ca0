"""From recordings to a store: read, checked, filtered, judged, cut into records; in parallel, resumable.

recipe = recipes.load("recipes/ingest/demo.yaml", IngestRecipe)
summary = run(recipe)
summary.ok, summary.quarantined
"""

from ddscale.ingest.recipe import IngestRecipe
from ddscale.ingest.running import run
from ddscale.ingest.summary import Summary

__all__ = ["IngestRecipe", "Summary", "run"]
