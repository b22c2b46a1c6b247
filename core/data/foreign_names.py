"""Names of question, answer and text columns in other languages, as `columns.normalize_name` writes them."""

FOREIGN_NAMES: dict[str, tuple[str, ...]] = {
    "question": (
        "frage", "fragen", "pregunta", "preguntas", "pergunta", "perguntas", "domanda", "domande", "vraag",
        "vragen", "fraga", "fragor", "spørgsmal", "sporgsmal", "spørsmal", "sporsmal", "kysymys",
        "pytanie", "pytania", "otazka", "kerdes", "intrebare", "soru", "sorular", "вопрос", "вопросы",
        "питання", "запитання", "въпрос", "питање", "ερωτηση", "שאלה", "السوال", "سوال", "परशन", "सवल",
        "คาถาม", "cauhoi", "hoi", "pertanyaan", "soalan", "问题", "問題", "问", "提问", "質問", "問い", "질문",
        "문제", "klausimas", "jautajums", "kusimus", "vprasanje", "pitanje", "galdera", "spurning",
    ),
    "answer": (
        "antwort", "antworten", "respuesta", "respuestas", "resposta", "respostas", "reponse", "reponses",
        "risposta", "risposte", "antwoord", "antwoorden", "svar", "vastaus", "odpowiedz", "odpoved",
        "valasz", "raspuns", "cevap", "cevaplar", "yanıt", "ответ", "ответы", "відповідь", "отговор",
        "одговор", "απαντηση", "תשובה", "الجواب", "الاجابة", "اجابة", "جواب", "پاسخ", "उततर", "जवब",
        "คาตอบ", "traloi", "đapan", "jawaban", "jawapan", "答案", "回答", "答", "答え", "回答内容", "답변", "답",
        "대답", "atsakymas", "atbilde", "vastus", "odgovor", "erantzuna",
    ),
    "text": (
        "texte", "texto", "testo", "tekst", "metin", "текст", "текста", "κειμενο", "טקסט", "النص", "نص",
        "टकसट", "ขอความ", "vanban", "teks", "文本", "正文", "テキスト", "本文", "텍스트", "본문", "teksti",
        "szoveg",
    ),
}
