"""Writes the table of keys into docs/configuration.md: python -m opd_jax.config"""

from opd_jax.config import page

if __name__ == "__main__":
  page.PAGE.write_text(page.with_tables(page.PAGE.read_text(encoding="utf-8")), encoding="utf-8")
  print(f"wrote {page.PAGE}")
