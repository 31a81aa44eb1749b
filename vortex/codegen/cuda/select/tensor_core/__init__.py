"""Contractions of summaries with numbers of the row on tensor cores, 16 pages on M and columns of the row on N; nothing
but select imports them.

A lane loads 16 bytes of a page at once and uses them as they lie: the sum over an axis has no order of its own, so
fragment A takes the elements as they come and fragment B, which is made once per row, is put in the same order.
Stored values of the row are multiplied as they are; computed ones are split into pieces whose sum they are.

    contractions.py   what is loaded and multiplied in which order, and the shared memory of the row's numbers
    lane.py           which rows and columns of that a lane has
    pieces.py         how computed numbers are split, and their sums put together
    factors.py        powers of two, constants and scales that numbers and sums are multiplied by
    fragments.py      the row's numbers, as tensor cores take them
    results.py        from accumulators to results
    pipeline.py       loads, products and results of the page tiles of a sweep, with all of these

Which lane holds what. ``group = lane / 4`` tells the page, ``member = lane % 4`` the part of it. A page tile is 32
pages, two *halves* of 16; of a half, a lane has pages ``group`` (its ``low`` words) and ``group + 8`` (``high``):

    lane         0  1  2  3     4  5  6  7     ..   28 29 30 31
    low words    page 0         page 1              page 7          + 16 half
    high words   page 8         page 9              page 15         + 16 half
    member       0  1  2  3     0  1  2  3          0  1  2  3

A *chunk* is what the four lanes of a page load at once: here 32 elements of 16 bits, ``words = 4`` for each lane. Two
words of a lane are its part of fragment A for one product over 16 elements, so that a chunk takes ``words / 2``:

    element      0  1 | 2  3 | 4  5 | 6  7 |  8  9 | ..         | 30 31
    member       0                         |  1        2          3
    word         0      1      2      3       0       ..           3
    product      0      0      1      1       0                    1
    K index of   2 member     2 member        ..
    the product   + 0, 1       + 8, 9

``unit_chunks`` chunks of a half are one *unit*: what is loaded together into one set of registers. The accumulators
of a product, with a tile of 8 columns on N:

                     column 2 member    2 member + 1
    page group              d0               d1             page 16 half + group
    page group + 8          d2               d3             page 16 half + group + 8

Of fields of 8 and 4 bits a word is two or four pairs of a fragment, which become f16 between the loads and the
products (:mod:`vortex.codegen.cuda.select.f16_pairs`).
"""
