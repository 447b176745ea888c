"""Studies: claims, the many small runs that test them, and the page that shows what came of it.

The modules here are shared by all studies. A study is a package of its own:

    arms.py        ARMS, the runs that differ in the seed alone; SHORT, those of a first look; FIRST_SEED
    claims.py      CLAIMS, and the rules by which they are decided, written before the runs
    measures.py    measure_all: what is measured of the students beside their accuracy
    sections.py    TITLE, INTRO and sections: the page
"""
