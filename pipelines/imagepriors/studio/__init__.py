"""The studio: a page on which a person looks into tokens and draws with a prior.

`contents` finds the priors, tokenizers and shards that the page shows; `server` is the web application, `guard` decides
who may open it, and `jobs` runs what takes long; the other modules answer requests, and `static` is the page.
"""
