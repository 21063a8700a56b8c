"""One heart as one HTML file: what the report shows, chapter by chapter, and how it is drawn.

`command` is `calid report` itself; read it first, then `chapters`. Of the others, `case` gathers what is told, `trust`
and `comparison` measure it, and `page`, `chart`, `sheet`, `stills` and `viewer` draw.
"""
