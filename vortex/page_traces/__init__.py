"""What a page trace says: figures for tables and programs, pictures, and the page of HTML; the CLI imports it."""
