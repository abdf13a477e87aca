# shellcheck shell=bash disable=SC2034,SC2154
# WMT14 English to German, base: the model of Vaswani et al. (2017) with the flags of fairseq's
# examples/scaling_nmt/README.md. The variants set some of these first and source this file.

kind=translation
source_lang=en
target_lang=de
prepare_script=${prepare_script:-prepare-wmt14.sh}
data=wmt14
suffixes=(de en)
preprocess_flags=(--source-lang en --target-lang de --joined-dictionary)
case $task in
    *.sentencepiece)
        data=wmt14-sentencepiece subwords=sentencepiece vocabulary=32000
        unsplit=sentencepiece
        ;;
    *.wmt16)
        data=wmt16 subwords=prepared tokenizer=moses
        unsplit='@@ '
        preprocess_flags+=(--nwordssrc 32768 --nwordstgt 32768)
        ;;
    *)
        subwords=subword-nmt vocabulary=40000 tokenizer=moses
        unsplit='@@ '
        ;;
esac

arch=transformer_wmt_en_de
train_flags=(
    --task translation --source-lang en --target-lang de
    --share-all-embeddings --dropout 0.1
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 --weight-decay 0.0
    --lr 7e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-07
    --max-tokens 4096 --update-freq 8
)
default_flags=(
    --max-update 100000 --log-interval 100
    --save-interval-updates 1500 --validate-interval-updates 1500
)
keep_checkpoints=10
generate_flags=(
    --source-lang en --target-lang de
    --beam 4 --lenpen 0.6 --remove-bpe "$unsplit" --max-tokens 8192
)
