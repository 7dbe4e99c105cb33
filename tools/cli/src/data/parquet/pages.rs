//! Parquet files whose pages are decompressed by [`unpack`](super::unpack).

use super::unpack::unpack;
use parquet::{
    basic::Compression,
    bloom_filter::Sbbf,
    column::page::{Page, PageMetadata, PageReader},
    errors::{ParquetError, Result},
    file::{
        metadata::{ParquetMetaData, RowGroupMetaData},
        reader::{FileReader, RowGroupReader, SerializedFileReader, SerializedPageReader},
    },
    record::reader::RowIter,
    schema::types::Type,
};
use std::{fs, sync::Arc};

pub(super) struct File {
    file: Arc<fs::File>,
    reader: SerializedFileReader<fs::File>,
}

impl File {
    pub(super) fn new(file: fs::File) -> Result<Self> {
        Ok(Self { file: Arc::new(file.try_clone()?), reader: SerializedFileReader::new(file)? })
    }
}

impl FileReader for File {
    fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    fn get_row_group(&self, at: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(RowGroup { file: &self.file, reader: self.reader.get_row_group(at)? }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct RowGroup<'f> {
    file: &'f Arc<fs::File>,
    reader: Box<dyn RowGroupReader + 'f>,
}

impl RowGroupReader for RowGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.reader.metadata()
    }

    fn num_columns(&self) -> usize {
        self.reader.num_columns()
    }

    fn get_column_page_reader(&self, at: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata().column(at);
        let compression = column.compression();
        if compression == Compression::UNCOMPRESSED {
            return self.reader.get_column_page_reader(at);
        }
        let plain = column.clone().into_builder();
        let plain = plain.set_compression(Compression::UNCOMPRESSED).build()?;
        let rows = usize::try_from(self.metadata().num_rows())?;
        let pages = SerializedPageReader::new(self.file.clone(), &plain, rows, None)?;
        Ok(Box::new(Pages { pages, compression }))
    }

    fn get_column_bloom_filter(&self, at: usize) -> Option<&Sbbf> {
        self.reader.get_column_bloom_filter(at)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// The pages of a column, which `pages` takes for uncompressed ones.
struct Pages {
    pages: SerializedPageReader<fs::File>,
    compression: Compression,
}

impl Pages {
    fn decompress(&self, mut page: Page) -> Result<Page> {
        let (buf, start) = match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => (buf, 0),
            Page::DataPageV2 { is_compressed: false, .. } => return Ok(page),
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                let levels = [*def_levels_byte_len, *rep_levels_byte_len];
                (buf, levels.iter().fold(0usize, |sum, &len| sum.saturating_add(len as usize)))
            }
        };
        *buf = self.decompress_after(start, buf)?.into();
        Ok(page)
    }

    /// Decompresses the bytes from `start` on; the levels before them are not compressed.
    fn decompress_after(&self, start: usize, bytes: &[u8]) -> Result<Vec<u8>> {
        let malformed = || ParquetError::General("malformed page".to_owned());
        let (levels, compressed) = bytes.split_at_checked(start).ok_or_else(malformed)?;
        let mut out = levels.to_vec();
        unpack(self.compression, compressed, &mut out)?;
        Ok(out)
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.map(|page| self.decompress(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}
