"""Print the ingest recipe with all of MOABB's datasets, for recipes/ingest/moabb.yaml."""

from ddscale.sources.moabb.catalogue import recipe

print(recipe(), end="")
