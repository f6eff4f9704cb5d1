//! What the writer promises: the bytes, the name last, and nothing left behind by a failure.

use std::fs;
use std::path::{Path, PathBuf};

use chatvec::ggml::GgmlType;
use chatvec::gguf::{Array, Check, Error, File, Finished, Header, Limits, Metadata, Model, TensorSpec, Value};
use chatvec::gguf::{WriteOptions, Writer};

use crate::support::{Draft, shard_name, split, valid};

/// The crate's header for the same model, with the metadata as the crate reads them.
fn plan(draft: &Draft) -> Header {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = File::open(&draft.write(folder.path(), "plan.gguf"), &Limits::default()).expect("a valid file");
    let specs = draft.tensors.iter().map(|t| TensorSpec {
        name: String::from_utf8(t.name.clone()).expect("a name of the test's"),
        ne: t.ne.clone(),
        ty: GgmlType::from_id(t.ty).expect("a type of the test's"),
    });
    Header::new(file.header().metadata().clone(), specs).expect("a plan")
}

fn fill(writer: &Writer, draft: &Draft) {
    for (i, tensor) in draft.tensors.iter().enumerate() {
        writer.write(i, 0, &tensor.data()).expect("room for the data");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Writes the small model the ordinary way.
fn write_valid(path: &Path, options: &WriteOptions) -> Result<Finished, Error> {
    let writer = Writer::create(plan(&valid()), path, options)?;
    fill(&writer, &valid());
    writer.finish(None)
}

fn overwrite() -> WriteOptions {
    WriteOptions { overwrite: true, ..WriteOptions::default() }
}

fn inputs(inputs: &[&Path]) -> WriteOptions {
    WriteOptions { overwrite: true, inputs: inputs.iter().map(PathBuf::from).collect(), ..WriteOptions::default() }
}

#[test]
fn writes_the_expected_bytes_at_every_alignment() {
    for alignment in [16, 32, 64, 128] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("out.gguf");
        let mut draft = valid();
        draft.align(alignment);
        let header = plan(&draft);
        assert!(header.tensors().iter().all(|t| t.offset().is_multiple_of(alignment.into())));
        let writer = Writer::create(header, &path, &WriteOptions::default()).expect("a writer");
        fill(&writer, &draft);
        let finished = writer.finish(None).expect("a finished file");
        assert!(fs::read(&path).expect("the output") == draft.bytes(), "alignment {alignment}");
        assert_eq!(finished, Finished { path, n_files: 1, len: draft.bytes().len() as u64 });
        assert_eq!(names(folder.path()), ["out.gguf"]);
    }
}

#[test]
fn writes_a_file_without_tensors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let mut draft = valid();
    draft.tensors.clear();
    Writer::create(plan(&draft), &path, &WriteOptions::default()).and_then(|w| w.finish(None)).expect("a file");
    assert!(fs::read(&path).expect("the output") == draft.bytes());
}

#[test]
fn copies_a_big_endian_file_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let draft = Draft { big_endian: true, version: 2, ..valid() };
    let input = File::open(&draft.write(folder.path(), "in.gguf"), &Limits::default()).expect("a valid file");
    let path = folder.path().join("out.gguf");
    let writer = Writer::create(input.header().clone(), &path, &inputs(&[input.path()])).expect("a writer");
    fill(&writer, &draft);
    writer.finish(None).expect("a finished file");
    assert!(fs::read(&path).expect("the output") == draft.bytes());
}

#[test]
fn takes_bytes_in_any_order_from_any_thread() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let draft = valid();
    let writer = Writer::create(plan(&draft), &path, &WriteOptions::default()).expect("a writer");
    std::thread::scope(|scope| {
        for turn in 0..4 {
            let (writer, draft) = (&writer, &draft);
            scope.spawn(move || {
                let tensors = draft.tensors.iter().map(|t| t.data()).enumerate();
                let pieces = tensors.flat_map(|(i, data)| {
                    data.chunks(37).enumerate().map(|(c, piece)| (i, c * 37, piece.to_vec())).collect::<Vec<_>>()
                });
                let mine: Vec<_> = pieces.enumerate().filter(|(n, _)| n % 4 == turn).collect();
                for (_, (tensor, offset, piece)) in mine.into_iter().rev() {
                    writer.write(tensor, offset as u64, &piece).expect("room for the piece");
                }
            });
        }
    });
    writer.finish(None).expect("a finished file");
    assert!(fs::read(&path).expect("the output") == draft.bytes());
}

#[test]
fn has_no_name_until_it_is_finished_and_leaves_nothing_when_dropped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let writer = Writer::create(plan(&valid()), &path, &WriteOptions::default()).expect("a writer");
    fill(&writer, &valid());
    let meanwhile = names(folder.path());
    assert_eq!(meanwhile.len(), 1);
    assert!(meanwhile[0].starts_with(".chatvec-") && meanwhile[0].ends_with(".tmp"), "{meanwhile:?}");
    assert_eq!(fs::metadata(folder.path().join(&meanwhile[0])).expect("it").len(), valid().bytes().len() as u64);
    drop(writer);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn replaces_an_existing_file_only_when_told_to() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    fs::write(&path, b"old").expect("a file");
    let error = write_valid(&path, &WriteOptions::default()).expect_err("an existing file");
    assert!(matches!(&error, Error::OutputExists { path: p } if *p == path), "{error}");
    assert!(error.to_string().contains("--overwrite"), "{error}");
    assert_eq!(fs::read(&path).expect("the old file"), b"old");

    let writer = Writer::create(plan(&valid()), &path, &overwrite()).expect("a writer");
    assert_eq!(fs::read(&path).expect("still the old file"), b"old");
    fill(&writer, &valid());
    writer.finish(None).expect("a finished file");
    assert!(fs::read(&path).expect("the new file") == valid().bytes());
    assert_eq!(names(folder.path()), ["out.gguf"]);
}

fn assert_is_input(result: Result<Finished, Error>, expected: &Path) {
    match result {
        Err(Error::OutputIsInput { input, .. }) => assert_eq!(input, expected),
        other => panic!("accepted an input as the output: {other:?}"),
    }
}

#[test]
fn refuses_to_replace_an_input() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = valid().write(folder.path(), "other.gguf");
    let input = valid().write(folder.path(), "in.gguf");
    assert_is_input(write_valid(&input, &inputs(&[&other, &input])), &input);
    let roundabout = folder.path().join(".").join("in.gguf");
    assert_is_input(write_valid(&roundabout, &inputs(&[&input])), &input);
    let hard_link = folder.path().join("hard.gguf");
    fs::hard_link(&input, &hard_link).expect("a hard link");
    assert_is_input(write_valid(&hard_link, &inputs(&[&other, &input])), &input);
    assert_eq!(names(folder.path()), ["hard.gguf", "in.gguf", "other.gguf"]);
}

#[cfg(unix)]
#[test]
fn refuses_to_replace_an_input_through_a_symbolic_link() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = valid().write(folder.path(), "in.gguf");
    for (link, to) in [("a.gguf", "in.gguf"), ("b.gguf", "a.gguf")] {
        let link = folder.path().join(link);
        std::os::unix::fs::symlink(to, &link).expect("a link");
        assert_is_input(write_valid(&link, &inputs(&[&input])), &input);
        assert_is_input(write_valid(&input, &inputs(&[&link])), &link);
    }
}

#[cfg(unix)]
#[test]
fn follows_a_symbolic_link_to_the_output_and_keeps_the_link() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("disk")).expect("a folder");
    let (link, target) = (folder.path().join("out.gguf"), folder.path().join("disk/real.gguf"));
    std::os::unix::fs::symlink("disk/real.gguf", &link).expect("a link");
    for options in [WriteOptions::default(), overwrite()] {
        let finished = write_valid(&link, &options).expect("a finished file");
        assert_eq!(finished.path, target);
        assert!(fs::symlink_metadata(&link).expect("the link").is_symlink());
        assert!(fs::read(&target).expect("the output") == valid().bytes());
    }
    assert_eq!(names(&folder.path().join("disk")), ["real.gguf"]);
    let endless = folder.path().join("endless.gguf");
    std::os::unix::fs::symlink("endless.gguf", &endless).expect("a link");
    assert!(matches!(write_valid(&endless, &overwrite()), Err(Error::Io { .. })));
}

#[cfg(unix)]
#[test]
fn gives_the_output_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    write_valid(&path, &WriteOptions::default()).expect("a finished file");
    fs::write(folder.path().join("new"), b"").expect("a file");
    let mode = |name: &str| fs::metadata(folder.path().join(name)).expect("a file").permissions().mode();
    assert_eq!(mode("out.gguf"), mode("new"));
}

#[test]
fn refuses_a_folder_and_names_only_a_folder_can_have() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    for path in [folder.path().to_owned(), at(".."), at("new/"), at("new/."), PathBuf::new()] {
        let error = write_valid(&path, &overwrite()).expect_err("no file can be there");
        assert!(matches!(error, Error::OutputKind { .. }), "{error}");
    }
    let error = write_valid(&at("absent/out.gguf"), &overwrite()).expect_err("no folder");
    assert!(matches!(error, Error::NoFolder { .. }), "{error}");
    assert!(names(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn refuses_a_pipe_without_waiting_for_its_other_end() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (input, pipe) = (folder.path().join("in.gguf"), folder.path().join("pipe"));
    fs::write(&input, "an input").expect("a file");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let error = write_valid(&pipe, &inputs(&[&input])).expect_err("no file can be renamed to a pipe");
    assert!(matches!(error, Error::OutputKind { .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn refuses_a_device() {
    let error = write_valid(Path::new("/dev/null"), &overwrite()).expect_err("a device");
    assert!(matches!(error, Error::OutputKind { .. }), "{error}");
}

fn one_tensor(ne: &[u64], ty: GgmlType) -> Result<Header, Error> {
    Header::new(Metadata::default(), [TensorSpec { name: "x".to_owned(), ne: ne.to_vec(), ty }])
}

#[test]
fn refuses_a_file_that_the_disk_cannot_hold() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let header = one_tensor(&[1 << 60], GgmlType::I8).expect("a plan");
    match Writer::create(header, &path, &WriteOptions::default()) {
        Err(Error::NoSpace { needed, available, .. }) => assert!(needed > 1 << 60 && available < needed),
        other => panic!("{other:?}"),
    }
    assert!(names(folder.path()).is_empty());
}

#[test]
fn refuses_to_finish_with_bytes_missing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let writer = Writer::create(plan(&valid()), &path, &WriteOptions::default()).expect("a writer");
    for (i, tensor) in valid().tensors.iter().enumerate().skip(1) {
        writer.write(i, 0, &tensor.data()).expect("room");
    }
    writer.write(0, 1, &valid().tensors[0].data()[1..]).expect("room");
    let error = writer.finish(None).expect_err("a byte is missing");
    assert_eq!(error.check(), Some(Check::Size), "{error}");
    assert!(error.to_string().contains("data section"), "{error}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn takes_late_values_of_the_same_size_only() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let mut draft = valid();
    draft.align(32);
    let finish = |change: fn(&mut Metadata)| {
        let writer = Writer::create(plan(&draft), &path, &overwrite()).expect("a writer");
        fill(&writer, &draft);
        let mut metadata = writer.header().metadata().clone();
        change(&mut metadata);
        writer.finish(Some(metadata))
    };
    finish(|m| m.set("general.name", "other")).expect("a name of five bytes, like the one planned");
    let file = File::open(&path, &Limits::default()).expect("a valid file");
    assert_eq!(file.header().metadata().get_str("general.name"), Some("other".into()));

    let before = fs::read(&path).expect("the output");
    type Change = fn(&mut Metadata);
    let refused: [(Check, Change); 5] = [
        (Check::Size, |m| m.set("general.name", "a longer name")),
        (Check::Size, |m| m.set("x.new", Value::U8(1))),
        (Check::Size, |m| m.retain(|key| key != "general.name")),
        // Of the same size, but the data lie where the plan put them.
        (Check::Alignment, |m| m.set("general.alignment", Value::U32(64))),
        (Check::Alignment, |m| m.set("general.alignment", Value::F32(32.0))),
    ];
    for (check, change) in refused {
        let error = finish(change).expect_err("another header than planned");
        assert_eq!(error.check(), Some(check), "{error}");
    }
    assert!(fs::read(&path).expect("the file before") == before);
    assert_eq!(names(folder.path()), ["out.gguf"]);
}

#[test]
fn keeps_the_data_when_another_file_took_the_name_meanwhile() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let writer = Writer::create(plan(&valid()), &path, &WriteOptions::default()).expect("a writer");
    fill(&writer, &valid());
    fs::write(&path, b"another run's").expect("a file");
    match writer.finish(None) {
        Err(Error::NotRenamed { path: about, kept, .. }) => {
            assert_eq!(about, path);
            assert!(fs::read(kept).expect("the finished file") == valid().bytes());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&path).expect("the other file"), b"another run's");
}

#[test]
fn refuses_to_plan_what_no_reader_takes() {
    let spec = |name: &str, ne: &[u64], ty| TensorSpec { name: name.to_owned(), ne: ne.to_vec(), ty };
    let plans: [(Check, Vec<TensorSpec>); 11] = [
        (Check::TensorName, vec![spec(&"n".repeat(64), &[1], GgmlType::F32)]),
        (Check::TensorName, vec![spec("a", &[1], GgmlType::F32), spec("a", &[2], GgmlType::F16)]),
        (Check::TensorName, vec![spec("a\0b", &[1], GgmlType::F32)]),
        (Check::Shape, vec![spec("a", &[1; 5], GgmlType::F32)]),
        (Check::Shape, vec![spec("a", &[1 << 32, 1 << 32], GgmlType::F32)]),
        (Check::Shape, vec![spec("a", &[0, u64::MAX], GgmlType::F32)]),
        (Check::Shape, vec![spec("a", &[1 << 62, 2, 0], GgmlType::I8)]),
        (Check::TensorType, vec![spec("a", &[250], GgmlType::Q4_K)]),
        (Check::Size, vec![spec("a", &[1 << 62], GgmlType::F64)]),
        (Check::Size, vec![spec("a", &[1 << 62, 0], GgmlType::F64)]),
        (Check::Size, ["a", "b", "c"].map(|name| spec(name, &[i64::MAX as u64], GgmlType::I8)).to_vec()),
    ];
    for (check, specs) in plans {
        let error = Header::new(Metadata::default(), specs).expect_err("no reader takes it");
        assert!(matches!(error, Error::Layout { .. }) && error.check() == Some(check), "{check:?}: {error}");
    }
    let keys: [(Check, &str, Value); 3] = [
        (Check::Key, "", Value::U8(0)),
        (Check::Alignment, "general.alignment", Value::U32(0)),
        (Check::Alignment, "general.alignment", Value::U64(32)),
    ];
    for (check, key, value) in keys {
        let mut metadata = Metadata::default();
        metadata.set(key, value);
        let error = Header::new(metadata, []).expect_err("no reader takes it");
        assert_eq!(error.check(), Some(check), "{error}");
    }
}

#[test]
fn plans_from_values_made_here_are_read_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    metadata.set("x.types", Value::Array(Array::from_i32s(&[1, -2, 3])));
    metadata.set("x.scores", Value::Array(Array::from_f32s(&[0.5, f32::NEG_INFINITY])));
    metadata.set("x.strings", Value::Array(Array::Strings(["a", "", "bc"].iter().collect())));
    let header = Header::new(metadata.clone(), []).expect("a plan");
    Writer::create(header, &path, &WriteOptions::default()).and_then(|w| w.finish(None)).expect("a file");
    let file = File::open(&path, &Limits::default()).expect("a valid file");
    assert_eq!(file.header().metadata(), &metadata);
}

#[test]
fn a_write_beyond_its_tensor_panics_even_if_it_wraps() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let writer = Writer::create(plan(&valid()), &path, &WriteOptions::default()).expect("a writer");
    for offset in [575, 576, u64::MAX] {
        let write = std::panic::AssertUnwindSafe(|| writer.write(0, offset, &[0; 2]));
        assert!(std::panic::catch_unwind(write).is_err(), "write at {offset}");
    }
}

/// The small model in shards of at most 1600 bytes, as `path` would be split.
fn write_shards(path: &Path, options: WriteOptions) -> Result<Finished, Error> {
    write_valid(path, &WriteOptions { split_max_size: Some(1600), ..options })
}

#[test]
fn a_split_output_is_the_shards_of_gguf_split() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let finished = write_shards(&folder.path().join("small.gguf"), WriteOptions::default()).expect("a set");
    let expected = split(&valid(), 3);
    assert_eq!(names(folder.path()), expected.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    for (name, shard) in &expected {
        assert!(fs::read(folder.path().join(name)).expect("a shard") == shard.bytes(), "{name}");
    }
    let len = expected.iter().map(|(_, shard)| shard.bytes().len() as u64).sum();
    let path = folder.path().join(shard_name("small", 1, 3));
    assert_eq!(finished, Finished { path: path.clone(), n_files: 3, len });
    Model::open(&path, &Limits::default()).expect("a model in three files");
}

#[test]
fn every_shard_has_the_alignment() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut draft = valid();
    draft.align(128);
    let options = WriteOptions { split_max_size: Some(1), ..WriteOptions::default() };
    let writer = Writer::create(plan(&draft), &folder.path().join("out.gguf"), &options).expect("a writer");
    fill(&writer, &draft);
    let finished = writer.finish(None).expect("a set");
    let model = Model::open(&finished.path, &Limits::default()).expect("a model");
    assert_eq!(model.files().len(), draft.tensors.len());
    assert!(model.files().iter().all(|file| file.header().alignment() == 128));
    for (id, tensor) in draft.tensors.iter().enumerate() {
        let mut found = vec![0; tensor.size() as usize];
        model.read(id, 0, &mut found).expect("the data");
        assert!(found == tensor.data(), "{}", model.tensor(id).name());
    }
}

#[test]
fn a_set_is_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let last = folder.path().join(shard_name("out", 3, 3));
    fs::write(&last, "mine").expect("a file");
    let error = write_shards(&path, WriteOptions::default()).expect_err("the last shard exists");
    assert!(matches!(&error, Error::OutputExists { path } if *path == last), "{error}");
    assert_eq!(names(folder.path()), ["out-00003-of-00003.gguf"]);

    let input = WriteOptions { overwrite: true, inputs: vec![last.clone()], ..WriteOptions::default() };
    let error = write_shards(&path, input).expect_err("a shard is an input");
    assert!(matches!(error, Error::OutputIsInput { .. }), "{error}");

    // One appears while the set is on its way: what is complete is kept, under the name that the
    // error gives.
    fs::remove_file(&last).expect("no file");
    let options = WriteOptions { split_max_size: Some(1600), ..WriteOptions::default() };
    let writer = Writer::create(plan(&valid()), &path, &options).expect("a writer");
    fill(&writer, &valid());
    let complete = writer.complete(None).expect("a set");
    Model::open(complete.path(), &Limits::default()).expect("a model that has no name yet");
    fs::write(&last, "mine").expect("a file");
    let error = complete.publish().expect_err("a shard exists");
    let Error::NotRenamed { kept, .. } = &error else { panic!("{error}") };
    assert_eq!(kept.file_name(), last.file_name());
    let kept = kept.parent().expect("a folder").join(shard_name("out", 1, 3));
    Model::open(&kept, &Limits::default()).expect("the whole set");
    assert_eq!(fs::read(&last).expect("the file"), b"mine");
}

#[test]
fn a_set_that_is_replaced_in_part_cannot_be_taken_for_a_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    write_shards(&path, WriteOptions::default()).expect("a set");
    let options = WriteOptions { split_max_size: Some(1600), ..overwrite() };
    let writer = Writer::create(plan(&valid()), &path, &options).expect("a writer");
    fill(&writer, &valid());
    let complete = writer.complete(None).expect("a set");
    // The second shard cannot take its name, after the third has.
    let second = folder.path().join(shard_name("out", 2, 3));
    fs::remove_file(&second).expect("a file");
    fs::create_dir(&second).expect("a folder");
    let error = complete.publish().expect_err("a folder is in the way");
    let Error::NotRenamed { kept, .. } = &error else { panic!("{error}") };
    let first = folder.path().join(shard_name("out", 1, 3));
    assert!(!first.exists(), "old and new shards could be read as one model");
    let kept = kept.parent().expect("a folder");
    assert_eq!(names(kept), ["out-00001-of-00003.gguf", "out-00002-of-00003.gguf", "replaced.gguf"]);

    fs::remove_dir(&second).expect("no folder");
    write_shards(&path, overwrite()).expect("a set in place of what is left");
    Model::open(&first, &Limits::default()).expect("a model");
}

#[test]
fn an_unfinished_or_renamed_set_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let options = WriteOptions { split_max_size: Some(1600), ..WriteOptions::default() };
    drop(Writer::create(plan(&valid()), &path, &options).expect("a writer"));
    assert!(names(folder.path()).is_empty());

    let writer = Writer::create(plan(&valid()), &path, &options).expect("a writer");
    fill(&writer, &valid());
    writer.complete(None).expect("a set").publish_with_suffix(".rejected").expect("a set");
    assert_eq!(names(folder.path()), (1..=3).map(|no| shard_name("out.gguf.rejected", no, 3)).collect::<Vec<_>>());
}

#[test]
fn what_fits_in_one_file_is_not_split() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.gguf");
    let options = WriteOptions { split_max_size: Some(1 << 20), ..WriteOptions::default() };
    let finished = write_valid(&path, &options).expect("a file");
    assert_eq!((finished.path, finished.n_files), (path.clone(), 1));
    assert!(fs::read(&path).expect("the output") == valid().bytes());
}
