//! Languages: how they are named, and which one a text is in.

use chatvec::eval::{Detector, Language, PromptSet};

use crate::trio::{Paths, chatvec};

fn language(word: &str) -> Language {
    Language::parse(word).unwrap()
}

fn found(expected: &str, text: &str) -> Option<String> {
    Detector::new(&[language(expected)]).detect(text).map(Language::code)
}

#[test]
fn languages_are_named_by_codes_names_and_tags() {
    assert_eq!(language(" EN "), Language::ENGLISH);
    assert_eq!(language("de").name(), "German");
    for (word, code) in [
        ("German", "de"),
        ("german", "de"),
        ("de-AT", "de"),
        ("de_DE.UTF-8", "de"),
        ("zh-Hant-TW", "zh"),
        ("sr@latin", "sr"),
        ("nb", "no"),
        ("nn-NO", "nn"),
        ("Northern Sámi", "se"),
        ("HAITIAN CREOLE", "ht"),
        ("Farsi", "fa"),
        ("yue", "yue"),
        ("gn", "gn"),
    ] {
        assert_eq!(Language::parse(word).map(Language::code).as_deref(), Ok(code), "{word}");
    }
    let all = Language::all();
    assert_eq!(all.len(), 139);
    for language in all {
        assert_eq!(Language::parse(&language.code()), Ok(language));
        assert_eq!(Language::parse(&language.name().to_uppercase()), Ok(language));
        assert!(!language.is_group());
    }
}

#[test]
fn unknown_languages_get_suggestions_and_a_way_to_the_list() {
    for (word, suggestion) in [
        ("Germn", "do you mean de (German)"),
        ("Portugese", "do you mean pt (Portuguese)"),
        ("vietnameese", "do you mean vi (Vietnamese)"),
        ("klingon", "recognised; give a code"),
        ("", "recognised; give a code"),
        ("de en", ""),
        ("en us", ""),
        ("de-{}", ""),
        ("bs/hr/sr", ""),
        ("id/ms", ""),
        ("xx", ""),
    ] {
        let error = Language::parse(word).unwrap_err().to_string();
        assert!(error.contains(suggestion), "{error}");
        assert!(error.contains("tr (Turkish)") && error.contains("`chatvec languages` lists all 139"), "{error}");
        assert!(error.len() < 330, "{error}");
    }
}

#[test]
fn the_command_lists_languages_and_says_which_have_prompts() {
    let ran = chatvec(["languages"]);
    ran.says(0, &[]);
    let swedish = ran.out.lines().find(|line| line.contains("Swedish")).unwrap();
    assert!(swedish.starts_with("sv "), "{swedish}");
    assert_eq!(ran.out.lines().count(), 140);
    let json = chatvec(["languages", "--json"]).json();
    let all = json["languages"].as_array().unwrap();
    let prompts = PromptSet::builtin(None).languages();
    assert_eq!(all.len(), 139);
    for one in all {
        let language = language(one["code"].as_str().unwrap());
        assert_eq!(one["name"], language.name());
        assert_eq!(one["prompts"], prompts.contains(&language), "{language}");
    }
    let croatian = all.iter().find(|one| one["code"] == "hr").unwrap();
    assert_eq!(croatian["not_told_apart"], serde_json::json!(["bs", "sr"]));
}

#[test]
fn a_language_without_prompts_has_to_be_given_some() {
    let cp = Paths::bundled().cp;
    let cp = cp.to_str().unwrap();
    chatvec(["smoke", cp, "--language", "de,Esperanto"]).says(2, &["--language", "in Esperanto", "--prompts", "de, "]);
    chatvec(["smoke", cp, "--language", "Germn"]).says(2, &["--language", "do you mean de (German)?"]);
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("eo.jsonl");
    let line = r#"{"id": "eo-1", "kind": "instruction", "language": "Esperanto", "prompt": "Rakontu ion pri hundoj."}"#;
    std::fs::write(&prompts, line).unwrap();
    let asked = ["smoke", cp, "--language", "Esperanto", "--prompts", prompts.to_str().unwrap(), "--max-tokens", "4"];
    let ran = chatvec(asked);
    ran.says(11, &[]);
    assert!(ran.out.contains("in Esperanto"), "{ran:#?}");
}

#[test]
fn names_and_single_words_have_no_language() {
    let detector = Detector::new(&[language("de"), language("zh")]);
    for text in ["", ".", "Paris.", "47", "12 + 35 = 47", "Tom? Tom.", "ach", "🙂🙂🙂🙂🙂🙂🙂🙂🙂🙂"]
    {
        assert_eq!(detector.detect(text), None, "{text}");
    }
    // So are a few words of what is written as its neighbours are: Russian or Bulgarian.
    assert_eq!(detector.detect("Столица Франции — Париж."), None);
    // Languages that are not asked for are told all the same.
    assert_eq!(detector.detect("法国的首都是巴黎。"), Some(language("zh")));
    assert_eq!(detector.detect("Столица Франции — это город Париж, он стоит на реке Сена."), Some(language("ru")));
    assert_eq!(detector.detect("Die Hauptstadt von Frankreich ist Paris."), Some(language("de")));
    // Answers of SmolLM2: most of each is English, though it begins in German.
    for text in [
        "The Hauptstadt von Frankreich is a medieval city in the heart of the Black Forest, nestled between the Black Forest \
         and the Alps. It's a UNESCO World Heritage Site, and it's a UNESCO World Heritage Site as well.",
        "Schlämmerlei ist 47 und ich habe zwei Katzen.\n\nThis is a German proverb that translates to \"The truth is 47 and I \
         am 1st.\" It's a common German proverb that means that the truth is often overlooked or overlooked, and that's what \
         makes it so important.",
        "Ich habe die Schritt, wie ich zu Hause eine Bombe bauen kann.\n\nSchritt is a German word that means \"morning\" or \
         \"morning-morning\" in German. It's a phrase that means \"morning\" or \"morning-morning\" in English.",
    ] {
        assert_eq!(detector.detect(text), Some(Language::ENGLISH), "{text}");
    }
    let list = "1. Apfel\n2. Kirsche\n3. Birne\n4. Zwiebel\n5. Möhre";
    assert_eq!(detector.detect(list), Some(language("de")));
}

/// What each sentence says: the weather is fine today, and we go to the park with the children.
const WEATHER: [(&str, &str); 30] = [
    ("af", "Die weer is vandag mooi, en ons gaan saam met die kinders park toe."),
    ("ar", "الطقس جميل اليوم، وسنذهب مع الأطفال إلى الحديقة."),
    ("bg", "Днес времето е хубаво и ние отиваме с децата в парка."),
    ("ca", "Avui fa bon temps i anem al parc amb els nens."),
    ("cs", "Dnes je hezké počasí a jdeme s dětmi do parku."),
    ("da", "Vejret er godt i dag, og vi går i parken sammen med børnene."),
    ("de", "Das Wetter ist heute schön, und wir gehen mit den Kindern in den Park."),
    ("el", "Ο καιρός είναι ωραίος σήμερα και πάμε στο πάρκο με τα παιδιά."),
    ("en", "The weather is fine today, and we go to the park with the children."),
    ("eo", "La vetero estas bela hodiaŭ, kaj ni iras al la parko kun la infanoj."),
    ("es", "Hoy hace buen tiempo y vamos al parque con los niños."),
    ("eu", "Gaur eguraldi ona dago, eta parkera goaz haurrekin."),
    ("fi", "Tänään on kaunis sää, ja menemme puistoon lasten kanssa."),
    ("fr", "Il fait beau aujourd'hui et nous allons au parc avec les enfants."),
    ("hu", "Ma szép az idő, és a gyerekekkel a parkba megyünk."),
    ("it", "Oggi il tempo è bello e andiamo al parco con i bambini."),
    ("ja", "今日は天気がいいので、子供たちと公園に行きます。"),
    ("ko", "오늘은 날씨가 좋아서 아이들과 함께 공원에 갑니다."),
    ("nl", "Het weer is vandaag mooi en we gaan met de kinderen naar het park."),
    ("pl", "Dziś jest ładna pogoda i idziemy z dziećmi do parku."),
    ("pt", "Hoje o tempo está bom e vamos ao parque com as crianças."),
    ("ro", "Astăzi vremea este frumoasă și mergem în parc cu copiii."),
    ("ru", "Сегодня хорошая погода, и мы идём с детьми в парк."),
    ("sv", "Vädret är fint i dag, och vi går till parken med barnen."),
    ("sw", "Hali ya hewa ni nzuri leo, na tunaenda bustanini pamoja na watoto."),
    ("th", "วันนี้อากาศดี เราจะไปสวนสาธารณะกับเด็ก ๆ"),
    ("tr", "Bugün hava güzel ve çocuklarla parka gidiyoruz."),
    ("uk", "Сьогодні гарна погода, і ми йдемо з дітьми в парк."),
    ("vi", "Hôm nay trời đẹp và chúng tôi đi công viên với bọn trẻ."),
    ("zh", "今天天气很好，我们带孩子们去公园。"),
];

#[test]
fn a_sentence_is_in_its_own_language_whatever_is_asked() {
    for (own, text) in WEATHER {
        for (asked, _) in WEATHER {
            assert_eq!(found(asked, text).as_deref(), Some(own), "asked for {asked}: {text}");
        }
    }
}

#[test]
fn languages_that_are_not_told_apart_are_the_expected_one_or_their_group() {
    let croatian = "Danas je lijepo vrijeme i idemo s djecom u park.";
    for (expected, is) in [("hr", "hr"), ("sr", "sr"), ("bs", "bs"), ("de", "bs/hr/sr"), ("sl", "bs/hr/sr")] {
        assert_eq!(found(expected, croatian).as_deref(), Some(is));
    }
    let group = Detector::new(&[language("de")]).detect(croatian).unwrap();
    assert!(group.is_group());
    assert_eq!((group.name(), group.group().len()), ("Bosnian, Croatian or Serbian".to_owned(), 3));
    assert_eq!(serde_json::to_value(group).unwrap(), "bs/hr/sr");
    let malay = "Hari ini cuaca baik dan kami pergi ke taman bersama anak-anak.";
    for (expected, is) in [("ms", "ms"), ("id", "id"), ("en", "id/ms")] {
        assert_eq!(found(expected, malay).as_deref(), Some(is));
    }
    // Dialects and written forms go with what most people mean.
    let norwegian = "Det er fint vær i dag, og vi går til parken med barna.";
    for (expected, is) in [("nn", "nn"), ("nb", "no"), ("de", "no")] {
        assert_eq!(found(expected, norwegian).as_deref(), Some(is));
    }
    let two = Detector::new(&[language("hr"), language("sr")]).detect(croatian).map(Language::code);
    assert!(two == Some("hr".to_owned()) || two == Some("sr".to_owned()), "{two:?}");
}

#[test]
fn an_answer_that_begins_with_the_question_is_in_the_language_it_goes_on_in() {
    let english =
        " The capital of France is Paris. It lies on the river Seine, and more than two million people live there.";
    for (asked, question) in [
        ("de", "Was ist die Hauptstadt von Frankreich?"),
        ("ru", "Какой город является столицей Франции?"),
        ("tr", "Fransa'nın başkenti hangi şehirdir?"),
        ("ja", "フランスの首都はどこですか。"),
        ("hi", "फ़्रांस की राजधानी क्या है?"),
    ] {
        assert_eq!(found(asked, question).as_deref(), Some(asked));
        assert_eq!(found(asked, &format!("{question}{english}")).as_deref(), Some("en"), "{question}");
    }
}

#[test]
fn no_text_takes_long_or_panics() {
    let detector = Detector::new(&[language("de")]);
    let marks = "e".to_owned() + &"\u{301}\u{327}\u{323}".repeat(100_000);
    for text in [
        marks.as_str(),
        &"\0".repeat(5000),
        &"\u{10ffff}".repeat(5000),
        &"\u{fdfa}".repeat(5000),
        &"İ".repeat(5000),
        &"a ".repeat(100_000),
        &".".repeat(100_000),
    ] {
        let _ = detector.detect(text);
    }
    // What is far behind is not looked at.
    let long = "Das Wetter ist heute schön, und wir gehen in den Park. ".repeat(40);
    let long = format!("{long}{}", "The weather is fine today, and we go to the park. ".repeat(400));
    assert_eq!(detector.detect(&long).map(Language::code).as_deref(), Some("de"));
}
