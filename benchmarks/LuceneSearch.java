import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.lucene.analysis.Analyzer;
import org.apache.lucene.analysis.LowerCaseFilter;
import org.apache.lucene.analysis.StopFilter;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.Tokenizer;
import org.apache.lucene.analysis.en.EnglishAnalyzer;
import org.apache.lucene.analysis.en.EnglishPossessiveFilter;
import org.apache.lucene.analysis.en.PorterStemFilter;
import org.apache.lucene.analysis.standard.StandardTokenizer;
import org.apache.lucene.analysis.tokenattributes.CharTermAttribute;
import org.apache.lucene.document.Document;
import org.apache.lucene.document.Field;
import org.apache.lucene.document.SortedDocValuesField;
import org.apache.lucene.document.StringField;
import org.apache.lucene.document.TextField;
import org.apache.lucene.index.DirectoryReader;
import org.apache.lucene.index.IndexWriter;
import org.apache.lucene.index.IndexWriterConfig;
import org.apache.lucene.index.Term;
import org.apache.lucene.search.BooleanClause;
import org.apache.lucene.search.BooleanQuery;
import org.apache.lucene.search.BoostQuery;
import org.apache.lucene.search.IndexSearcher;
import org.apache.lucene.search.ScoreDoc;
import org.apache.lucene.search.Sort;
import org.apache.lucene.search.SortField;
import org.apache.lucene.search.TermQuery;
import org.apache.lucene.search.similarities.BM25Similarity;
import org.apache.lucene.store.Directory;
import org.apache.lucene.store.MMapDirectory;
import org.apache.lucene.util.BytesRef;

/**
 * WebShop's search on Lucene 8 itself, without Pyserini: the same analyzer, similarity, query and order of equal scores.
 *
 * <p>{@code terms}: the terms of each line of standard input. {@code search DOCUMENTS FOLDER}: index the lines of
 * DOCUMENTS (id, tab, text) in FOLDER; for each query, a line of standard input, the ids of the best 50, and at the end
 * the milliseconds that the queries took. Terms and ids are separated by tabs.
 */
public class LuceneSearch {
  private static final int HITS = 50;

  public static void main(String[] arguments) throws IOException {
    PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    if (arguments[0].equals("terms")) {
      for (String line = in.readLine(); line != null; line = in.readLine()) {
        out.println(String.join("\t", terms(line)));
      }
    } else {
      try (Directory folder = new MMapDirectory(Path.of(arguments[2]))) {
        index(Path.of(arguments[1]), folder);
        search(folder, in, out);
      }
    }
    out.flush();
  }

  private static final Analyzer ANALYZER =
      new Analyzer() {
        @Override
        protected TokenStreamComponents createComponents(String field) {
          Tokenizer words = new StandardTokenizer();
          TokenStream lower = new LowerCaseFilter(new EnglishPossessiveFilter(words));
          TokenStream kept = new StopFilter(lower, EnglishAnalyzer.ENGLISH_STOP_WORDS_SET);
          return new TokenStreamComponents(words, new PorterStemFilter(kept));
        }
      };

  private static List<String> terms(String text) throws IOException {
    List<String> terms = new ArrayList<>();
    try (TokenStream stream = ANALYZER.tokenStream("contents", text)) {
      CharTermAttribute term = stream.addAttribute(CharTermAttribute.class);
      stream.reset();
      while (stream.incrementToken()) {
        terms.add(term.toString());
      }
      stream.end();
    }
    return terms;
  }

  private static void index(Path documents, Directory folder) throws IOException {
    IndexWriterConfig settings = new IndexWriterConfig(ANALYZER).setSimilarity(new BM25Similarity(0.9f, 0.4f));
    try (IndexWriter writer = new IndexWriter(folder, settings);
        BufferedReader lines = Files.newBufferedReader(documents)) {
      for (String line = lines.readLine(); line != null; line = lines.readLine()) {
        String[] parts = line.split("\t", 2);
        Document document = new Document();
        document.add(new StringField("id", parts[0], Field.Store.YES));
        document.add(new SortedDocValuesField("id", new BytesRef(parts[0])));
        document.add(new TextField("contents", parts[1], Field.Store.NO));
        writer.addDocument(document);
      }
      writer.forceMerge(1);
    }
  }

  private static void search(Directory folder, BufferedReader in, PrintStream out) throws IOException {
    Sort order = new Sort(SortField.FIELD_SCORE, new SortField("id", SortField.Type.STRING_VAL));
    long nanoseconds = 0;
    try (DirectoryReader reader = DirectoryReader.open(folder)) {
      IndexSearcher searcher = new IndexSearcher(reader);
      searcher.setSimilarity(new BM25Similarity(0.9f, 0.4f));
      for (String line = in.readLine(); line != null; line = in.readLine()) {
        long start = System.nanoTime();
        Map<String, Integer> counts = new TreeMap<>();
        for (String term : terms(line)) {
          counts.merge(term, 1, Integer::sum);
        }
        BooleanQuery.Builder query = new BooleanQuery.Builder();
        for (Map.Entry<String, Integer> one : counts.entrySet()) {
          TermQuery term = new TermQuery(new Term("contents", one.getKey()));
          query.add(new BoostQuery(term, one.getValue()), BooleanClause.Occur.SHOULD);
        }
        List<String> ids = new ArrayList<>();
        for (ScoreDoc hit : searcher.search(query.build(), HITS, order, true).scoreDocs) {
          ids.add(reader.document(hit.doc).get("id"));
        }
        nanoseconds += System.nanoTime() - start;
        out.println(String.join("\t", ids));
      }
    }
    out.println(nanoseconds / 1_000_000);
  }
}
